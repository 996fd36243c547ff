"""Frames and control messages, one at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.frames import (
    decode_keepalive,
    encode_standby_status_update,
)
from etl_dagster.protocol.pgoutput import (
    Begin,
    Commit,
    LogicalMessage,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    Type,
    decode_begin,
    decode_commit,
    decode_message,
    decode_origin,
    decode_relation,
    decode_truncate,
    decode_type,
)
from tests.unit import wire

_RELATION = Relation(
    16384,
    "public",
    "größe",
    "d",
    (RelationColumn("id", 20, -1, True), RelationColumn("n", 1700, 786438, False)),
)


def test_a_status_update_is_34_bytes_with_all_three_positions() -> None:
    update = encode_standby_status_update(
        written=Lsn(3), flushed=Lsn(2), applied=Lsn(1), now_us=5, reply_requested=True
    )

    assert struct.unpack("!cQQQqB", update) == (b"r", 3, 2, 1, 5, 1)
    assert len(update) == 34


def test_a_keepalive_says_whether_it_wants_an_answer() -> None:
    assert decode_keepalive(wire.keepalive(9, reply_requested=True)).reply_requested
    assert not decode_keepalive(wire.keepalive(9)).reply_requested


def test_a_begin_and_a_commit_are_read() -> None:
    assert decode_begin(wire.begin(100, time_us=-5, xid=7)[1:]) == Begin(Lsn(100), -5, 7)
    assert decode_commit(wire.commit(100, 108, time_us=3)[1:]) == Commit(Lsn(100), Lsn(108), 3)


def test_a_truncated_begin_is_refused_with_both_lengths() -> None:
    with pytest.raises(DecodeError, match=r"20 bytes, the server sent 7 \(at byte 8 of"):
        decode_begin(bytes(7))


def test_a_relation_is_read_with_its_columns() -> None:
    assert decode_relation(wire.relation(_RELATION)[1:]) == _RELATION


def test_relations_of_equal_content_are_one_key() -> None:
    again = decode_relation(wire.relation(_RELATION)[1:])

    assert {_RELATION: "found"}[again] == "found"


def test_an_unknown_replica_identity_is_refused() -> None:
    broken = wire.relation(_RELATION).replace(b"\0d\0", b"\0?\0")

    with pytest.raises(DecodeError, match="unknown replica identity"):
        decode_relation(broken[1:])


def test_a_truncate_names_its_tables_and_options() -> None:
    message = wire.truncate([1, 2], restart_identity=True)

    assert decode_truncate(message[1:]) == Truncate((1, 2), False, True)


def test_a_truncate_of_more_tables_than_it_has_is_refused() -> None:
    """Before anything of that size is made."""
    with pytest.raises(DecodeError, match="4294967295 tables"):
        decode_truncate(struct.pack("!IB", 2**32 - 1, 0))


def test_messages_origins_and_types_are_read() -> None:
    message = struct.pack("!BQ", 1, 50) + b"prefix\0" + struct.pack("!I", 3) + b"abc"
    assert decode_message(message) == LogicalMessage(Lsn(50), "prefix", b"abc", True)
    assert decode_origin(struct.pack("!Q", 6) + b"other\0") == Origin(Lsn(6), "other")
    assert decode_type(struct.pack("!I", 16500) + b"\0mood\0") == Type(16500, "pg_catalog", "mood")


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (decode_relation, wire.relation(_RELATION)[1:]),
        (decode_truncate, wire.truncate([1, 2])[1:]),
        (decode_origin, struct.pack("!Q", 6) + b"other\0"),
        (decode_type, struct.pack("!I", 16500) + b"\0mood\0"),
        (decode_begin, wire.begin(1)[1:]),
        (decode_commit, wire.commit(1, 2)[1:]),
    ],
)
def test_a_message_of_any_other_length_is_refused(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    for length in range(len(body)):
        with pytest.raises(DecodeError) as caught:
            decode(body[:length])
        assert caught.value.offset is not None
        assert 0 <= caught.value.offset <= len(body) + 1
    with pytest.raises(DecodeError):
        decode(body + b"\0")
