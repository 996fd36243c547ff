"""Settings that a role or a database may have, and that change no value."""

from __future__ import annotations

HOSTILE = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "lc_monetary": "POSIX",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "xmloption": "document",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "search_path": "elsewhere",
    "client_encoding": "LATIN1",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "idle_session_timeout": "1s",
    "idle_in_transaction_session_timeout": "200ms",
    "statement_timeout": "200ms",
    "lock_timeout": "100ms",
    "exit_on_error": "on",
    "gin_fuzzy_search_limit": "1",
    "row_security": "on",
    "synchronous_commit": "remote_apply",
}
#: Of later versions.
HOSTILE_17 = {"transaction_timeout": "500ms"}
