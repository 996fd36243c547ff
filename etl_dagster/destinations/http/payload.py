"""Bodies of requests, which the JSON Schema of their format describes, of bounded size."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from etl_dagster.destinations.http.answers import BodyTooLarge
from etl_dagster.destinations.http.config import NEWEST, Format
from etl_dagster.destinations.http.formats import described, require_format, without_choices
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    RelationEvent,
    RowEvent,
    TableChanges,
    TableRows,
    TableStep,
    TruncateEvent,
    odd_by_row,
)
from etl_dagster.model.json_values import event_to_json, row_to_json, schema_to_json
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.python import to_dicts

#: How many changes are turned into objects at a time.
_SLICE_ROWS: Final = 2000
_ENCODER: Final = json.JSONEncoder(
    allow_nan=False, check_circular=False, ensure_ascii=False, separators=(",", ":")
)


@dataclass(frozen=True, slots=True)
class Body:
    """A request. Every try sends exactly this."""

    #: Path below the base URL.
    path: str
    #: In visible ASCII; no other body has the same.
    key: str
    #: JSON in UTF-8.
    content: bytes


# -- the copy ----------------------------------------------------------------------------------


def drop_body(
    pipeline: str, schema: TableSchema, request_id: str, *, format: Format = NEWEST
) -> Body:
    """What begins a copy. `request_id` tells this drop from any other.

    The schema may be that of an earlier copy, in forms that the format doesn't have; the copy that
    now begins can have others.
    """
    head = _head(
        "drop-for-copy", pipeline, without_choices(schema) if format == 1 else schema, format
    )
    return Body(
        f"tables/{quote(schema.name, safe='')}/drop-for-copy",
        _key(pipeline, schema, "drop", request_id),
        _encode(head),
    )


def rows_bodies(
    pipeline: str,
    schema: TableSchema,
    rows: TableRows,
    attempt: str,
    max_bytes: int | Callable[[], int],
    *,
    format: Format = NEWEST,
) -> Generator[Body]:
    """The parts of a chunk, or the end of the copy; `rows` are read lazily.

    Args:
        attempt: tells this delivery of the chunk from another, which may hold other rows: the
            source is read again.
        max_bytes: a number, or a function that returns it for the next body.

    A generator; a `BodyTooLarge` thrown into it has it continue with half of the refused body.

    Raises:
        NotInFormat: the format can't carry the table's values.
    """
    require_format(format, schema)
    head = {
        **_head("rows", pipeline, schema, format),
        "copy_id": rows.copy_id,
        "replay_from": str(rows.replay_from),
        "end_of_copy": rows.is_end_of_copy,
    }
    if rows.chunk is None:
        key = _key(pipeline, schema, "end-of-copy", rows.copy_id)
        yield Body("rows", key, _encode(head | {"rows": []}))
        return
    index = rows.chunk.index
    made = 0

    def make(items: Sequence[_Row], is_last: bool, refused: int) -> Body:
        nonlocal made
        part, made = made - refused, made + 1
        place = {"chunk": index, "attempt": attempt, "part": part, "is_last_part": is_last}
        # A body that was refused had the same number.
        name = f"{part}-{refused}" if refused else str(part)
        key = _key(pipeline, schema, "rows", rows.copy_id, str(index), attempt, name)
        odd = [{"row": number, "values": item.odd} for number, item in enumerate(items) if item.odd]
        more = {"odd": odd} if odd else {}
        content = _with_list(head | place | more, "rows", [item.encoded for item in items])
        return Body("rows", key, content)

    yield from _bodies(_pieces(_rows(schema, rows), max_bytes), make)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a copy, and its values that the columns' types can't hold."""

    encoded: bytes
    odd: Mapping[str, str] | None

    def __len__(self) -> int:
        return len(self.encoded)


def _rows(schema: TableSchema, rows: TableRows) -> Iterator[_Row]:
    for piece in rows.pieces():
        odd = odd_by_row(piece.odd)
        for number, row in enumerate(to_dicts(piece.rows)):
            yield _Row(_encode(row_to_json(schema, row)), odd.get(number))


# -- the stream --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    """A change, and the relation that it came with, if one did; they are never sent apart."""

    encoded: bytes
    first: Position | None
    last: Position | None

    def __len__(self) -> int:
        return len(self.encoded)


def events_bodies(
    pipeline: str,
    steps: Sequence[TableStep],
    max_bytes: int | Callable[[], int],
    *,
    epoch: int = 0,
    apply_from: Lsn | None = None,
    format: Format = NEWEST,
) -> Generator[Body]:
    """One table's part of a batch, in order. All events of a body have the schema it names.

    A generator; a `BodyTooLarge` thrown into it has it continue with half of the refused body.

    Raises:
        NotInFormat: the format can't carry the table's values.
    """
    for stretch in _stretches([described(format, step) for step in steps]):
        schema = stretch[0].schema
        require_format(format, schema)
        head = {
            **_head("events", pipeline, schema, format),
            "epoch": epoch,
            "apply_from": None if apply_from is None else str(apply_from),
        }
        make = partial(_events_body, pipeline, schema, head)
        yield from _bodies(_pieces(_items(stretch), max_bytes), make)


def _events_body(
    pipeline: str,
    schema: TableSchema,
    head: dict[str, Any],
    items: Sequence[_Item],
    is_last: bool,
    refused: int,
) -> Body:
    first, last = items[0].first, items[-1].last
    if first is None or last is None:
        place = f"relation:{schema.snapshot_id}"
    else:
        place = f"{first}-{last}"
    content = _with_list(head, "events", [item.encoded for item in items])
    return Body("events", _key(pipeline, schema, "events", place), content)


def _stretches(steps: Sequence[TableStep]) -> Iterator[list[TableStep]]:
    """The steps in pieces of one schema each; a relation begins one."""
    stretch: list[TableStep] = []
    for step in steps:
        if stretch and (isinstance(step, RelationEvent) or step.schema != stretch[0].schema):
            yield stretch
            stretch = []
        stretch.append(step)
    if stretch:
        yield stretch


def _items(stretch: Sequence[TableStep]) -> Iterator[_Item]:
    relation: bytes | None = None
    for event in _events(stretch):
        encoded = _encode(event_to_json(event))
        if isinstance(event, RelationEvent):
            relation = encoded
            continue
        if relation is not None:
            encoded, relation = relation + b"," + encoded, None
        yield _Item(encoded, event.position, event.position)
    if relation is not None:
        yield _Item(relation, None, None)


def _events(stretch: Sequence[TableStep]) -> Iterator[RowEvent | TruncateEvent | RelationEvent]:
    for step in stretch:
        if not isinstance(step, TableChanges):
            yield step
            continue
        for start in range(0, len(step), _SLICE_ROWS):
            yield from step.slice(start, min(start + _SLICE_ROWS, len(step))).events()


# -- both --------------------------------------------------------------------------------------


def _head(kind: str, pipeline: str, schema: TableSchema, format: Format) -> dict[str, Any]:
    table = schema_to_json(schema)
    return {"format": format, "kind": kind, "pipeline": pipeline, "table": table}


def _key(pipeline: str, schema: TableSchema, *parts: str) -> str:
    names = (pipeline, str(schema.id), *parts)
    return ":".join(quote(name, safe="/:") for name in names)


def _encode(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8")


def _with_list(head: dict[str, Any], name: str, items: Iterable[bytes]) -> bytes:
    """The object with one more member, a list of what is encoded already."""
    return b'%s,"%s":[%s]}' % (_encode(head)[:-1], name.encode(), b",".join(items))


def _bodies(
    pieces: Iterable[tuple[list[Any], bool]], make: Callable[[Sequence[Any], bool, int], Body]
) -> Generator[Body]:
    """The bodies of some pieces, one for each that the receiver takes.

    When a body was refused for its size, throw the `BodyTooLarge` into the generator: it continues
    with half of it. If the body has a single item, the error is raised again.

    Args:
        make: gets the items, whether the body is the last, and how many were refused before.
    """
    refused = 0
    for whole, is_last in pieces:
        waiting = [(whole, is_last)]
        while waiting:
            items, is_end = waiting.pop()
            try:
                yield make(items, is_end, refused)
            except BodyTooLarge:
                if len(items) < 2:
                    raise
                refused += 1
                middle = len(items) // 2
                waiting += [(items[middle:], is_end), (items[:middle], False)]


def _pieces(
    items: Iterable[Any], max_bytes: int | Callable[[], int]
) -> Iterator[tuple[list[Any], bool]]:
    """Lists of items that have together at most `max_bytes`, each with whether it is the last.

    A larger item is alone in its list. Without items there is one empty list, the last.
    """
    limit = max_bytes if callable(max_bytes) else lambda: max_bytes
    piece: list[Any] = []
    size = 0
    for item in items:
        if piece and size + len(item) > limit():
            yield piece, False
            piece, size = [], 0
        piece.append(item)
        size += len(item) + 1
    yield piece, True
