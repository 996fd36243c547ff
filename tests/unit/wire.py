"""Frames as a server writes them, for tests of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from etl_dagster.protocol.pgoutput import Relation


class Unchanged:
    """A TOAST value that didn't change and isn't sent."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()
#: The text of a value; None is null.
Value = str | bytes | Unchanged | None
Tuple = Sequence[Value]


def xlog_data(message: bytes, *, wal_end: int = 0) -> bytes:
    return struct.pack("!cQQq", b"w", 0, wal_end, 0) + message


def keepalive(wal_end: int, *, reply_requested: bool = False) -> bytes:
    return struct.pack("!cQqB", b"k", wal_end, 0, reply_requested)


def begin(commit_lsn: int, *, time_us: int = 0, xid: int = 1) -> bytes:
    return b"B" + struct.pack("!QqI", commit_lsn, time_us, xid)


def commit(commit_lsn: int, end_lsn: int, *, time_us: int = 0) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, commit_lsn, end_lsn, time_us)


def relation(what: Relation) -> bytes:
    columns = b"".join(
        struct.pack("!B", column.is_identity)
        + column.name.encode()
        + b"\0"
        + struct.pack("!Ii", column.type_oid, column.type_modifier)
        for column in what.columns
    )
    names = what.schema_name.encode() + b"\0" + what.table_name.encode() + b"\0"
    identity = what.replica_identity.encode()
    count = struct.pack("!H", len(what.columns))
    return b"R" + struct.pack("!I", what.id) + names + identity + count + columns


def insert(relation_id: int, new: Tuple) -> bytes:
    return b"I" + struct.pack("!I", relation_id) + b"N" + tuple_data(new)


def update(relation_id: int, new: Tuple, old: Tuple | None = None, old_tag: bytes = b"K") -> bytes:
    before = b"" if old is None else old_tag + tuple_data(old)
    return b"U" + struct.pack("!I", relation_id) + before + b"N" + tuple_data(new)


def delete(relation_id: int, old: Tuple, old_tag: bytes = b"K") -> bytes:
    return b"D" + struct.pack("!I", relation_id) + old_tag + tuple_data(old)


def truncate(
    relation_ids: Sequence[int], *, cascade: bool = False, restart_identity: bool = False
) -> bytes:
    options = cascade | restart_identity << 1
    return b"T" + struct.pack(f"!IB{len(relation_ids)}I", len(relation_ids), options, *relation_ids)


def tuple_data(values: Tuple) -> bytes:
    return struct.pack("!H", len(values)) + b"".join(map(_value, values))


def _value(value: Value) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, Unchanged):
        return b"u"
    text = value.encode() if isinstance(value, str) else value
    return b"t" + struct.pack("!I", len(text)) + text
