"""Random streams through the fast decoder and the obvious one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import Event, EventBatch, RowEvent
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from tests.unit import wire
from tests.unit.slow_decoder import SlowDecoder

#: Streams of a dozen rows are to go through more than one block, too.
_BLOCK_ROWS = 3
_NUMERIC_12_2 = (12 << 16 | 2) + 4
_TEXTS: dict[int, st.SearchStrategy[str]] = {
    16: st.sampled_from("tf"),
    17: st.binary(max_size=6).map(lambda value: "\\x" + value.hex()),
    20: st.integers(-(2**63), 2**63 - 1).map(str),
    23: st.integers(-(2**31), 2**31 - 1).map(str),
    25: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    701: st.floats(allow_nan=False).map(
        lambda value: repr(value).replace("inf", "Infinity") if math.isinf(value) else repr(value)
    ),
    1700: st.decimals(-(10**9), 10**9, places=2).map(lambda value: f"{value:f}") | st.just("NaN"),
    1184: st.datetimes().map(lambda value: value.isoformat(" ") + "+00") | st.just("infinity"),
}


@st.composite
def _relations(draw: st.DrawFn, relation_id: int) -> Relation:
    identity = draw(st.sampled_from("dif"))
    oids = draw(st.lists(st.sampled_from(sorted(_TEXTS)), max_size=5))
    columns = tuple(
        RelationColumn(
            f"c{place}",
            oid,
            _NUMERIC_12_2 if oid == 1700 else -1,
            is_identity=identity == "f" or draw(st.booleans()),
        )
        for place, oid in enumerate(oids)
    )
    return Relation(relation_id, "public", f"t{relation_id}", identity, columns)  # type: ignore[arg-type]


@st.composite
def _tuples(draw: st.DrawFn, relation: Relation, *, unchanged: bool = False) -> list[wire.Value]:
    values: list[wire.Value] = []
    for column in relation.columns:
        absent: list[wire.Value] = [None, wire.UNCHANGED] if unchanged else [None]
        values.append(draw(st.one_of(_TEXTS[column.type_oid], st.sampled_from(absent))))
    return values


@st.composite
def _messages(draw: st.DrawFn) -> list[bytes]:
    """Whole transactions over up to three tables, as one connection would send them."""
    known: dict[int, Relation] = {}
    messages: list[bytes] = []
    lsn = 1000
    for _ in range(draw(st.integers(1, 4))):
        lsn += draw(st.integers(10, 100))
        messages.append(wire.begin(lsn, time_us=lsn, xid=lsn))
        for _ in range(draw(st.integers(0, 12))):
            relation_id = draw(st.integers(1, 3))
            if relation_id not in known or draw(st.integers(0, 9)) == 0:
                known[relation_id] = draw(_relations(relation_id))
                messages.append(wire.relation(known[relation_id]))
            elif draw(st.integers(0, 9)) == 0:
                messages.append(wire.relation(known[relation_id]))
            messages.append(draw(_change(known, known[relation_id])))
        messages.append(wire.commit(lsn, lsn + 8, time_us=lsn))
        lsn += 8
    return messages


@st.composite
def _change(draw: st.DrawFn, known: dict[int, Relation], relation: Relation) -> bytes:
    match draw(st.sampled_from("IIUUDT")):
        case "I":
            return wire.insert(relation.id, draw(_tuples(relation)))
        case "U":
            old = draw(st.none() | _tuples(relation))
            tag = draw(st.sampled_from([b"K", b"O"]))
            return wire.update(relation.id, draw(_tuples(relation, unchanged=True)), old, tag)
        case "D":
            tag = draw(st.sampled_from([b"K", b"O"]))
            return wire.delete(relation.id, draw(_tuples(relation)), tag)
    ids = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, unique=True))
    return wire.truncate(ids, cascade=draw(st.booleans()), restart_identity=draw(st.booleans()))


def _schema_of(relation: Relation, commit_lsn: Lsn = LSN_ZERO) -> TableSchema:
    columns = tuple(
        ColumnSchema(c.name, c.type_oid, c.type_modifier, is_identity=c.is_identity)
        for c in relation.columns
    )
    return TableSchema(
        relation.id,
        relation.schema_name,
        relation.table_name,
        columns,
        replica_identity=relation.replica_identity,
    )


def _decode(
    frames: list[bytes], session: ReplicationSession, apply_from: dict[int, Lsn]
) -> Iterator[EventBatch]:
    """Drain the frames as from a connection; a batch whenever one is full, and the rest."""
    waiting = iter(frames)

    def get() -> tuple[int, memoryview]:
        frame = next(waiting, b"")
        return len(frame), memoryview(frame)

    while session.drain(get) > 0:
        yield session.take_batch().decode(_schema_of, apply_from, 7, block_rows=_BLOCK_ROWS)
    yield session.take_batch().decode(_schema_of, apply_from, 7, block_rows=_BLOCK_ROWS)


def _without_sequence(events: list[Event]) -> list[Event]:
    return [replace(event, sequence=0) for event in events]


_SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_SETTINGS
@given(
    _messages(),
    st.integers(1, 20),
    st.integers(1, 2000),
    st.dictionaries(st.integers(1, 3), st.integers(1000, 1300).map(Lsn)),
)
def test_every_event_is_the_one_that_the_obvious_decoder_gives(
    messages: list[bytes], max_rows: int, max_bytes: int, apply_from: dict[int, Lsn]
) -> None:
    """Whatever the batches' sizes: the same values at the same positions in the same order."""
    frames = [wire.xlog_data(message) for message in messages]
    slow = SlowDecoder(_schema_of, apply_from)
    expected = [event for frame in frames for event in slow.events(frame)]

    session = ReplicationSession(max_bytes=max_bytes, max_rows=max_rows)
    batches = list(_decode(frames, session, apply_from))

    events = [event for batch in batches for event in batch]
    assert _without_sequence(events) == expected
    for batch in batches:
        places = [event.sequence for event in batch]
        assert places == sorted(set(places))
        assert all(isinstance(event.row, dict) for event in batch if isinstance(event, RowEvent))


@_SETTINGS
@given(_messages(), st.data())
def test_broken_bytes_give_a_decode_error_or_a_valid_batch(
    messages: list[bytes], data: st.DataObject
) -> None:
    frames = [wire.xlog_data(message) for message in messages]
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, len(frames) - 1))
        frame = bytearray(frames[which])
        if data.draw(st.booleans()) and len(frame):
            place = data.draw(st.integers(0, len(frame) - 1))
            frame[place] = data.draw(st.integers(0, 255))
        elif data.draw(st.booleans()):
            del frame[data.draw(st.integers(1, len(frame))) :]
        else:
            frame += data.draw(st.binary(max_size=9))
        frames[which] = bytes(frame)
    everything = dict.fromkeys(range(1, 4), Lsn(0))

    try:
        for batch in _decode(frames, ReplicationSession(), everything):
            list(batch)
            for steps in batch.tables.values():
                for step in steps:
                    if hasattr(step, "rows"):
                        step.rows.validate(full=True)
    except DecodeError:
        pass
