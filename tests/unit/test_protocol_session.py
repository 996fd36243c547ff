"""What a replication session knows, and how it cuts the stream into batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, RelationEvent, TableChanges, TruncateEvent
from etl_dagster.model.position import Position
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.protocol.batch import POSTGRES_EPOCH_US
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from tests.unit import wire

_A = Relation(1, "public", "a", "d", (RelationColumn("id", 23, -1, True),))
_B = Relation(
    2, "public", "b", "d", (RelationColumn("id", 23, -1, True), RelationColumn("t", 25, -1, False))
)
_ALL = {1: Lsn(0), 2: Lsn(0)}


def _schema_of(relation: Relation, commit_lsn: Lsn) -> TableSchema:
    columns = tuple(
        ColumnSchema(c.name, c.type_oid, c.type_modifier, is_identity=c.is_identity)
        for c in relation.columns
    )
    return TableSchema(relation.id, relation.schema_name, relation.table_name, columns)


def _fed(*messages: bytes) -> ReplicationSession:
    session = ReplicationSession()
    _feed(session, messages)
    return session


def _feed(session: ReplicationSession, messages: Iterable[bytes]) -> None:
    for message in messages:
        session.feed(wire.xlog_data(message))


def _taken(session: ReplicationSession, apply_from: dict[int, Lsn] = _ALL) -> EventBatch:
    return session.take_batch().decode(_schema_of, apply_from, 1)


def _kinds(events: EventBatch, table_id: int) -> list[str]:
    return [type(step).__name__ for step in events.tables[table_id]]


# -- what it knows -------------------------------------------------------------------------------


def test_a_new_session_knows_nothing() -> None:
    session = ReplicationSession()

    assert session.is_empty
    assert session.row_count == 0
    assert session.open_commit_lsn is None
    assert session.last_commit_end == session.last_keepalive_end == session.last_wal_end == Lsn(0)


def test_the_open_transaction_is_known_by_the_start_of_its_commit_record() -> None:
    between = _fed(wire.begin(100), wire.commit(100, 108))
    inside = _fed(wire.begin(100), wire.commit(100, 108), wire.begin(200))

    assert (between.open_commit_lsn, between.last_commit_end) == (None, Lsn(108))
    assert (inside.open_commit_lsn, inside.last_commit_end) == (Lsn(200), Lsn(108))


def test_a_keepalive_moves_positions_and_may_ask_for_an_answer_once() -> None:
    session = ReplicationSession()
    session.feed(wire.keepalive(50, reply_requested=True))

    assert session.last_keepalive_end == session.last_wal_end == Lsn(50)
    assert session.take_reply_request()
    assert not session.take_reply_request()
    assert session.is_empty


def test_the_newest_row_shows_how_far_the_servers_wal_reaches() -> None:
    session = _fed(wire.begin(100), wire.relation(_A))
    session.feed(wire.xlog_data(wire.insert(1, ["1"]), wal_end=777))

    assert session.last_wal_end == Lsn(777)


def test_marks_alone_are_something_to_do_but_are_not_rows() -> None:
    session = _fed(wire.begin(100), wire.commit(100, 108))

    assert not session.is_empty
    assert session.row_count == 0


def test_a_truncate_counts_as_something_to_do() -> None:
    session = _fed(wire.begin(100), wire.relation(_A), wire.truncate([1]))

    assert session.row_count == 1


# -- batches -------------------------------------------------------------------------------------


def test_draining_stops_at_a_full_batch_and_resumes_after_it() -> None:
    frames = [wire.xlog_data(wire.begin(100)), wire.xlog_data(wire.relation(_A))]
    frames += [wire.xlog_data(wire.insert(1, [str(number)])) for number in range(5)]
    waiting = [(len(frame), memoryview(frame)) for frame in frames]
    waiting += [(0, memoryview(b"")), (-1, memoryview(b""))]
    get = iter(waiting).__next__
    session = ReplicationSession(max_rows=2)

    sizes = []
    while (status := session.drain(get)) > 0:
        sizes.append(session.row_count)
        assert session.take_batch().is_full

    assert sizes == [2, 2]
    assert (status, session.row_count) == (0, 1)
    assert not session.take_batch().is_full
    assert session.drain(get) == -1


def test_a_batch_is_full_by_bytes_with_the_row_that_fills_it() -> None:
    frames = [wire.xlog_data(wire.begin(100)), wire.xlog_data(wire.relation(_B))]
    frames += [wire.xlog_data(wire.insert(2, ["1", "x" * 1000])) for _ in range(3)]
    get = iter([(len(frame), memoryview(frame)) for frame in frames]).__next__
    session = ReplicationSession(max_bytes=1500)

    assert session.drain(get) > 0
    assert session.row_count == 2


def test_a_transaction_cut_by_a_batch_continues_counting() -> None:
    """So the same change has the same position, however the stream is cut."""
    session = _fed(wire.begin(100), wire.relation(_A), wire.insert(1, ["1"]), wire.truncate([1]))
    session.take_batch()
    _feed(session, [wire.insert(1, ["2"])])
    session.take_batch()
    _feed(session, [wire.insert(1, ["3"]), wire.commit(100, 108)])

    (changes,) = _taken(session).tables[1]

    assert isinstance(changes, TableChanges)
    assert changes.last_position == Position(Lsn(100), 3)


def test_a_batch_knows_its_first_transaction_also_when_it_began_before() -> None:
    session = _fed(wire.begin(100, time_us=5), wire.relation(_A), wire.insert(1, ["1"]))
    session.take_batch()
    assert session.take_batch().first_commit_time_us is None

    _feed(session, [wire.commit(100, 108), wire.begin(200)])
    batch = session.take_batch()

    assert batch.first_commit_time_us == POSTGRES_EPOCH_US + 5
    assert batch.commit_end_lsn == Lsn(108)


def test_tables_that_are_not_wanted_are_skipped_but_counted() -> None:
    session = _fed(
        wire.begin(100),
        wire.relation(_A),
        wire.relation(_B),
        wire.insert(1, ["1"]),
        wire.insert(2, ["1", "x"]),
        wire.commit(100, 108),
    )

    events = _taken(session, {2: Lsn(100)})

    assert list(events.tables) == [2]
    changes = events.tables[2][-1]
    assert isinstance(changes, TableChanges)
    assert changes.last_position == Position(Lsn(100), 1)


def test_a_table_is_applied_from_its_transaction_on() -> None:
    session = _fed(
        *(wire.begin(100), wire.relation(_A), wire.insert(1, ["1"]), wire.commit(100, 108)),
        *(wire.begin(200), wire.insert(1, ["2"]), wire.commit(200, 208)),
    )

    (changes,) = _taken(session, {1: Lsn(101)}).tables[1]

    assert isinstance(changes, TableChanges)
    assert changes.rows.to_pylist() == [{"id": 2}]


def test_unwanted_rows_are_not_decoded() -> None:
    """What a table holds that is copied later can't stop those that stream."""
    session = _fed(wire.begin(100), wire.relation(_A), wire.relation(_B))
    _feed(session, [wire.insert(2, ["1", "x"])[:-1], wire.insert(1, ["1"])])

    assert list(_taken(session, {1: Lsn(0)}).tables) == [1]


# -- barriers ------------------------------------------------------------------------------------


def test_a_truncate_is_a_barrier_in_its_tables_only() -> None:
    session = _fed(
        *(wire.begin(100), wire.relation(_A), wire.relation(_B)),
        *(wire.insert(1, ["1"]), wire.insert(2, ["1", "x"]), wire.truncate([1])),
        *(wire.insert(1, ["2"]), wire.insert(2, ["2", "y"]), wire.commit(100, 108)),
    )

    events = _taken(session)

    assert _kinds(events, 1) == ["RelationEvent", "TableChanges", "TruncateEvent", "TableChanges"]
    assert _kinds(events, 2) == ["RelationEvent", "TableChanges"]


def test_a_truncate_of_several_tables_has_a_position_for_each() -> None:
    session = _fed(
        wire.begin(100), wire.relation(_A), wire.relation(_B), wire.truncate([1, 2], cascade=True)
    )

    truncates = [event for event in _taken(session) if isinstance(event, TruncateEvent)]

    assert [str(event.position) for event in truncates] == ["0/64:0", "0/64:1"]
    assert all(event.cascade for event in truncates)


def test_a_relation_that_is_sent_again_unchanged_is_not_an_event() -> None:
    session = _fed(wire.begin(100), wire.relation(_A), wire.insert(1, ["1"]), wire.relation(_A))
    _feed(session, [wire.insert(1, ["2"]), wire.commit(100, 108)])

    assert _kinds(_taken(session), 1) == ["RelationEvent", "TableChanges"]


def test_rows_have_the_schema_of_the_relation_before_them() -> None:
    wider = Relation(1, "public", "a", "d", _B.columns)
    session = _fed(wire.begin(100), wire.relation(_A), wire.insert(1, ["1"]), wire.relation(wider))
    _feed(session, [wire.insert(1, ["2", "x"]), wire.commit(100, 108)])

    steps = _taken(session).tables[1]

    assert isinstance(steps[2], RelationEvent)
    assert [len(step.schema.columns) for step in steps] == [1, 1, 2, 2]


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([wire.commit(1, 2)], "a Commit message outside of a transaction"),
        ([wire.begin(1), wire.begin(2)], "a Begin message inside of a transaction"),
        ([wire.begin(1), wire.commit(2, 3)], "a Commit message for 0/2 in the transaction of 0/1"),
        ([wire.relation(_A)], "a Relation message outside of a transaction"),
        ([b"?"], "unknown tag '\\?'"),
        ([wire.begin(1), b"A\0\0\0\1\0\0\0\2"], "transaction 1 inside of a transaction"),
        ([b"A\0\0\0\1"], "Stream Abort message is 8 bytes, the server sent 4"),
        ([b"S\0\0\0\1\1"], "unknown tag 'S'"),
    ],
)
def test_a_message_out_of_place_is_refused(messages: list[bytes], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        _fed(*messages)


def test_the_abort_of_a_transaction_that_was_never_sent_changes_nothing() -> None:
    """PostgreSQL 18.6 sends it, though no one asked for transactions that haven't committed."""
    session = _fed(b"A\0\0\0\1\0\0\0\2")

    assert session.is_empty


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([wire.insert(1, ["1"])], "outside of a transaction"),
        ([wire.begin(1), wire.insert(1, ["1"])], "relation 1, which was not described"),
        ([wire.begin(1), wire.relation(_A), wire.insert(1, ["1", "2"])], "does not have 1 columns"),
        ([wire.begin(1), wire.relation(_A), wire.insert(1, ["1"])[:-1]], "past its message"),
        ([wire.begin(1), wire.relation(_A), wire.insert(1, ["1"]) + b"x"], "after its end"),
        ([wire.begin(1), wire.relation(_A), b"D" + wire.insert(1, ["1"])[1:]], "one of KO"),
        ([wire.begin(1), wire.relation(_A), b"I\0\0\0\1"], "ends too early"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(messages: list[bytes], reason: str) -> None:
    session = _fed(*messages)

    with pytest.raises(DecodeError, match=reason):
        _taken(session)


def test_an_error_says_at_which_byte_of_the_message() -> None:
    session = _fed(wire.begin(1), wire.relation(_A), wire.insert(1, ["1"]))
    broken = bytearray(wire.insert(1, ["1"]))
    broken[8] = ord("?")  # the first value's kind: behind tag, relation, 'N' and column count
    _feed(session, [bytes(broken)])

    with pytest.raises(DecodeError) as caught:
        _taken(session)
    assert caught.value.offset == 8


# -- what it costs -------------------------------------------------------------------------------


def test_decoding_does_not_import_pandas() -> None:
    """pyarrow does so for convenience; it takes a second and sixty megabytes."""
    program = """
import sys
from tests.unit.test_protocol_session import _A, _fed, _taken
from tests.unit import wire
_taken(_fed(wire.begin(1), wire.relation(_A), wire.insert(1, ["1"]), wire.commit(1, 2)))
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
