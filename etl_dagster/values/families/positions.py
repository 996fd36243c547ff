"""Numbers that the server gives to transactions, rows and places in the log."""

from __future__ import annotations

from typing import Final

from etl_dagster.values.families.texts import own_text, printed

ROWS: Final = (
    printed(27, "tid", "(0,1)"),
    printed(28, "xid", "4294967295"),
    printed(29, "cid", "0"),
    printed(5069, "xid8", "0", "18446744073709551615", own=own_text("UBIGINT")),
    printed(3220, "pg_lsn", "0/0", "FFFFFFFF/FFFFFFFF"),
    printed(2970, "txid_snapshot", "10:20:10,14,15"),
    printed(5038, "pg_snapshot", "10:20:10,14,15"),
    # Lists, but not arrays: they have no braces.
    printed(22, "int2vector", "1 2", ""),
    printed(30, "oidvector", "1 2"),
)
