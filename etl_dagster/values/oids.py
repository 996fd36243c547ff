"""The OIDs of built-in types that are read by their meaning (pg_type.dat), and their infinities."""

from __future__ import annotations

from typing import Final

BOOL, BYTEA, CHAR, NAME = 16, 17, 18, 19
INT8, INT2, INT4, TEXT, OID = 20, 21, 23, 25, 26
JSON, XML, FLOAT4, FLOAT8, MONEY, INET = 114, 142, 700, 701, 790, 869
BPCHAR, VARCHAR, DATE, TIME, TIMESTAMP, TIMESTAMPTZ = 1042, 1043, 1082, 1083, 1114, 1184
NUMERIC, UUID, JSONB = 1700, 2950, 3802

#: Of a timestamp column, in microseconds; its negative is ``-infinity``.
TIMESTAMP_INFINITY: Final = 2**63 - 1
#: Of a date column, in days.
DATE_INFINITY: Final = 2**31 - 1
