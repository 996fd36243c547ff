"""Where tables are, for what a load package can't do: reading rows back, and replacing a table."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import pyarrow as pa

from etl_dagster.destinations.dlt.lane import Lane, Part
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.rows import DELETED, TOKEN, TableShape
from etl_dagster.values.python import to_objects

#: Keys in one query.
_KEYS: Final = 500


class Place(Protocol):
    """Tables at a destination that mirrors them."""

    def fetch(
        self, lane: Lane, shape: TableShape, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        """Values as they are at the destination, a row for each key; null where it has none."""
        ...

    def replace(self, lane: Lane, shape: TableShape, copy: str, entry: TableEntry) -> None:
        """Have the table hold what was collected of a copy, and keep the entry with it.

        Args:
            copy: the name of the table that it was collected in.
            entry: with the chunks whose rows count.
        """
        ...

    def discard(self, lane: Lane, name: str) -> None:
        """Drop a table if it is there."""
        ...


class SqlPlace:
    """Tables that are reached by SQL: a copy becomes its table in one transaction there."""

    def __init__(self, has_transactions: bool) -> None:
        self._has_transactions = has_transactions

    def fetch(
        self, lane: Lane, shape: TableShape, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        def read(pipeline: Any) -> list[Sequence[Any]]:
            found: list[Sequence[Any]] = []
            with pipeline.sql_client() as client:
                names = [client.escape_column_name(name) for name in (*shape.key, *columns)]
                table = client.make_qualified_table_name(shape.name)
                one = " AND ".join(f"{name} = %s" for name in names[: len(shape.key)])
                for some in _slices(wanted, _KEYS):
                    any_of = " OR ".join([f"({one})"] * len(some))
                    query = f"SELECT {', '.join(names)} FROM {table} WHERE {any_of}"  # noqa: S608
                    values = [value for key in some for value in key]
                    found += client.execute_sql(query, *values) or []
            return found

        wanted = tuples_of(keys)
        return row_for_each(shape, wanted, columns, lane.run("read rows back", read))

    def replace(self, lane: Lane, shape: TableShape, copy: str, entry: TableEntry) -> None:
        tokens = list(entry.chunks.values())
        table_id = shape.source.id
        target = Part(table_id, shape.name, "append", shape.merged, (), shape.key)
        done = {table_id: replace(entry, chunks={})}
        if not tokens:
            if not lane.run("look at a table", lambda pipeline: _exists(pipeline, shape.name)):
                lane.load([target], done)
                return
            # Only a table that was made now shows which types its columns would have.
            self.discard(lane, copy)
            lane.load([Part(table_id, copy, "append", shape.collected), target], {})
        if lane.run("look at a table", lambda pipeline: _drop_other(pipeline, shape, copy)):
            lane.load([target], {})
        lane.run("replace a table", lambda pipeline: self._swap(pipeline, shape, copy, tokens))
        lane.load([], done)
        self.discard(lane, copy)

    def discard(self, lane: Lane, name: str) -> None:
        lane.run("drop a table", lambda pipeline: _drop(pipeline, name))

    def _swap(self, pipeline: Any, shape: TableShape, copy: str, tokens: Sequence[str]) -> None:
        with pipeline.sql_client() as client:
            names = ", ".join(map(client.escape_column_name, shape.columns))
            table = client.make_qualified_table_name(shape.name)
            source = client.make_qualified_table_name(copy)
            token = client.escape_column_name(TOKEN)
            if self._has_transactions:
                with client.begin_transaction():
                    self._fill(client, table, source, names, token, tokens)
            else:
                self._fill(client, table, source, names, token, tokens)

    @staticmethod
    def _fill(
        client: Any, table: str, source: str, names: str, token: str, tokens: Sequence[str]
    ) -> None:
        client.execute_sql(f"DELETE FROM {table} WHERE 1 = 1")  # noqa: S608
        for some in _slices(tokens, _KEYS):
            among = ", ".join(["%s"] * len(some))
            client.execute_sql(
                f"INSERT INTO {table} ({names}) SELECT {names} FROM {source} "  # noqa: S608
                f"WHERE {token} IN ({among})",
                *some,
            )


def _exists(pipeline: Any, name: str) -> bool:
    with pipeline.destination_client() as client:
        return bool(client.is_storage_initialized() and client.get_storage_table(name)[0])


def _drop(pipeline: Any, name: str) -> None:
    """Drop a table, and have dlt look again at what is there before the next package."""
    with pipeline.destination_client() as client:
        if client.is_storage_initialized() and client.get_storage_table(name)[0]:
            client.drop_tables(name, delete_schema=True)


def _drop_other(pipeline: Any, shape: TableShape, copy: str) -> bool:
    """Drop the table if its columns are others than in the new copy; whether it was dropped.

    dlt changes no type, and drops no column. With the table goes the one that its rows are staged
    in.
    """
    with pipeline.destination_client() as client:
        held = client.get_storage_table(shape.name)[1]
        wanted = client.get_storage_table(copy)[1]
        if _types(held, {DELETED}) == _types(wanted, {TOKEN}):
            return False
        client.drop_tables(shape.name, delete_schema=True)
        with client.with_staging_dataset():
            if client.is_storage_initialized():
                if client.get_storage_table(shape.name)[0]:
                    client.sql_client.drop_tables(shape.name)
                # Of all pipelines: each looks again at what is there before its next package.
                versions = client.sql_client.make_qualified_table_name(
                    client.schema.version_table_name
                )
                client.sql_client.execute_sql(f"DELETE FROM {versions} WHERE 1 = 1")  # noqa: S608
    return True


def _types(columns: Mapping[str, Any], without: set[str]) -> dict[str, tuple[Any, ...]]:
    """What dlt reads of a table's columns in the database."""
    parts = ("data_type", "precision", "scale", "timezone")
    return {
        name: tuple(column.get(part) for part in parts)
        for name, column in columns.items()
        if name.lower() not in without
    }


def row_for_each(
    shape: TableShape,
    keys: Sequence[tuple[Any, ...]],
    columns: Sequence[str],
    found: Iterable[Sequence[Any]],
) -> pa.RecordBatch:
    """A row for each key, of the values found; null where none was.

    Args:
        found: rows with the columns of the key, and then these columns.
    """
    length = len(shape.key)
    rows = {_as_arrow(row[:length], shape, shape.key): row[length:] for row in found}
    nothing = (None,) * len(columns)
    values = [rows.get(key, nothing) for key in keys]
    arrays = [
        pa.array([_plain(row[place]) for row in values], shape.arrow.field(name).type)
        for place, name in enumerate(columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def tuples_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return list(zip(*(to_objects(column) for column in batch.columns), strict=True))


def _as_arrow(values: Sequence[Any], shape: TableShape, names: Sequence[str]) -> tuple[Any, ...]:
    """Values as a driver gives them, as Arrow gives them."""
    return tuple(
        to_objects(pa.array([_plain(value)], shape.arrow.field(name).type))[0]
        for value, name in zip(values, names, strict=True)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return value.tobytes()
    return str(value) if isinstance(value, uuid.UUID) else value


def _slices(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
