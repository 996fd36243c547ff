"""pgoutput decoded the obvious way: one message, one value, one Python object after the other.

What the decoder of the product does at once for thousands of rows must be what this does for each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    BeginEvent,
    CommitEvent,
    DeleteEvent,
    Event,
    InsertEvent,
    RelationEvent,
    RowEvent,
    TruncateEvent,
    UpdateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.pgoutput import Relation, decode_relation

_EPOCH_US = 946_684_800_000_000

#: By type OID: bool, bytea, int8, int4, text, float8, numeric(12,2), timestamptz.
PARSERS: dict[int, Callable[[str], Any]] = {
    16: lambda text: text == "t",
    17: lambda text: bytes.fromhex(text[2:]),
    20: int,
    23: int,
    25: str,
    701: float,
    1700: lambda text: None if text == "NaN" else Decimal(text),
    1184: lambda text: "infinity" if text == "infinity" else datetime.fromisoformat(text),
}


class SlowDecoder:
    """Goes through a stream once; knows relations and the open transaction."""

    def __init__(
        self, schema_of: Callable[[Relation], TableSchema], apply_from: Mapping[int, Lsn]
    ) -> None:
        self._schema_of = schema_of
        self._apply_from = apply_from
        self._relations: dict[int, Relation] = {}
        self._lsn = Lsn(0)
        self._time_us = 0
        self._ordinal = 0
        self._xid = 0

    def events(self, frame: bytes) -> Iterator[Event]:
        """The events of one XLogData frame; their sequence is always 0."""
        tag, body = chr(frame[25]), frame[26:]
        if tag == "B":
            offset, time_us, xid = struct.unpack("!QqI", body)
            self._lsn, self._time_us, self._ordinal = Lsn(offset), time_us + _EPOCH_US, 0
            self._xid = xid
            yield BeginEvent(self._lsn, self._time_us, xid, 0)
        elif tag == "C":
            _, offset, end, time_us = struct.unpack("!BQQq", body)
            yield CommitEvent(Lsn(offset), Lsn(end), time_us + _EPOCH_US, 0)
        elif tag == "R":
            relation = decode_relation(body)
            if self._relations.get(relation.id) != relation:
                self._relations[relation.id] = relation
                if self._is_wanted(relation.id):
                    yield RelationEvent(self._schema_of(relation), None, 0)
        elif tag == "T":
            yield from self._truncates(body)
        else:
            yield from self._row(tag, body)

    def _is_wanted(self, relation_id: int) -> bool:
        first = self._apply_from.get(relation_id)
        return first is not None and self._lsn >= first

    def _truncates(self, body: bytes) -> Iterator[TruncateEvent]:
        count, options = struct.unpack_from("!IB", body)
        for relation_id in struct.unpack_from(f"!{count}I", body, 5):
            position = Position(self._lsn, self._ordinal)
            self._ordinal += 1
            if self._is_wanted(relation_id):
                schema = self._schema_of(self._relations[relation_id])
                flags = bool(options & 1), bool(options & 2)
                yield TruncateEvent(schema, position, 0, self._time_us, *flags, self._xid)

    def _row(self, tag: str, body: bytes) -> Iterator[RowEvent]:
        position = Position(self._lsn, self._ordinal)
        self._ordinal += 1
        (relation_id,) = struct.unpack_from("!I", body)
        if not self._is_wanted(relation_id):
            return
        schema = self._schema_of(self._relations[relation_id])
        tuples = dict(_tuples(body, 4, schema))
        none: tuple[None, frozenset[str], dict[str, str]] = (None, frozenset(), {})
        old, unknown_in_old, old_odd = tuples.get("K") or tuples.get("O") or none
        if tag == "D":
            assert old is not None
            known = {name: value for name, value in old.items() if name not in unknown_in_old}
            unknown = frozenset(unknown_in_old)
            yield DeleteEvent(
                schema, position, 0, self._time_us, known, None, unknown, old_odd, xid=self._xid
            )
            return
        kind = InsertEvent if tag == "I" else UpdateEvent
        new, unchanged, odd = tuples["N"]
        row = {name: value for name, value in new.items() if name not in unchanged}
        unknown = frozenset(unchanged)
        time_us, xid = self._time_us, self._xid
        yield kind(schema, position, 0, time_us, row, old, unknown, odd, old_odd, xid)


def _tuples(
    body: bytes, at: int, schema: TableSchema
) -> Iterator[tuple[str, tuple[dict[str, Any], set[str], dict[str, str]]]]:
    """Tag, values, names of unchanged values and texts of odd ones of each tuple.

    An unchanged value is None, and so is an odd one.
    """
    while at < len(body):
        tag = chr(body[at])
        (count,) = struct.unpack_from("!H", body, at + 1)
        assert count == len(schema.columns)
        at += 3
        values: dict[str, Any] = {}
        unchanged = set()
        odd = {}
        for column in schema.columns:
            kind = chr(body[at])
            at += 1
            values[column.name] = None
            if kind == "u":
                unchanged.add(column.name)
            elif kind == "t":
                (length,) = struct.unpack_from("!I", body, at)
                text = body[at + 4 : at + 4 + length].decode()
                value = values[column.name] = PARSERS[column.type_oid](text)
                if value is None:
                    odd[column.name] = text
                at += 4 + length
        yield tag, (values, unchanged, odd)
