"""Tables that are reached by SQL, spelled as all databases among dlt's destinations take it."""

# Names are made by dlt's own client, which quotes them; values are parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.entries import IDENTITY, Identity, identities_of
from etl_dagster.destinations.dlt.lane import Lane, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.places import (
    has_other_types,
    holds_log,
    row_for_each,
    tuples_of,
)
from etl_dagster.destinations.dlt.rows import DELETED, LOGGED, TOKEN, LoadedTable
from etl_dagster.model.position import Position

#: Keys in one query.
_KEYS: Final = 500
_OP, _LSN, _ORDINAL = LOGGED.names[:3]


class SqlPlace:
    """A copy becomes its table, or part of it, in one transaction if the database has them."""

    def __init__(self, has_transactions: bool) -> None:
        self._has_transactions = has_transactions

    def fetch(
        self, lane: Lane, shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        def read(pipeline: Any) -> list[Sequence[Any]]:
            found: list[Sequence[Any]] = []
            with pipeline.sql_client() as client:
                names = _list(client, [*shape.key, *columns])
                table = client.make_qualified_table_name(shape.name)
                for condition, values in _among(client, shape, wanted):
                    query = f"SELECT {names} FROM {table} WHERE {condition}"
                    found += client.execute_sql(query, *values) or []
            return found

        wanted = tuples_of(keys)
        return row_for_each(shape, wanted, columns, lane.run("read rows back", read))

    def require_replaceable(self, lane: Lane, shape: LoadedTable) -> None:
        if not shape.is_log and _OP in lane.run("inspect a table", lambda p: _columns(p, shape)):
            raise holds_log(shape)

    def replace(self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry) -> None:
        tokens = list(entry.chunks.values())
        table_id = shape.source.id
        target = LoadPart(table_id, shape.name, "append", shape.whole, (), shape.key)
        done = {table_id: replace(entry, chunks={})}
        if not tokens:
            if not lane.run("inspect a table", lambda pipeline: _columns(pipeline, shape)):
                lane.load([target], done)
                return
            # Only a table that was just created shows which types its columns would have.
            self.discard(lane, copy)
            lane.load([LoadPart(table_id, copy, "append", shape.collected), target], {})
        if lane.run("inspect a table", lambda pipeline: _drop_other(pipeline, shape, copy)):
            lane.load([target], {})

        def swap(client: Any) -> None:
            table = client.make_qualified_table_name(shape.name)
            client.execute_sql(f"DELETE FROM {table} WHERE 1 = 1")
            names = _list(client, shape.columns)
            _insert(client, shape.name, copy, tokens, names, names, [])

        self._in_transaction(lane, swap)
        lane.load([], done)
        self.discard(lane, copy)

    def extend(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> None:
        tokens = list(entry.chunks.values())
        table_id = shape.source.id
        done = {table_id: replace(entry, chunks={})}
        if lane.run("inspect a table", lambda pipeline: self._is_lacking(pipeline, shape, copy)):
            lane.load([LoadPart(table_id, shape.name, "append", shape.whole)], {})
        values = ["copy", at.lsn, 0, at.time]

        def join(client: Any) -> None:
            table = client.make_qualified_table_name(shape.name)
            names = [client.escape_column_name(name) for name in (_OP, _LSN)]
            client.execute_sql(
                f"DELETE FROM {table} WHERE {names[0]} = 'copy' AND {names[1]} = %s",
                at.lsn,
            )
            into = _list(client, [*shape.columns, *LOGGED.names[:4]])
            chosen = ", ".join([_list(client, shape.columns), *["%s"] * 4])
            _insert(client, shape.name, copy, tokens, into, chosen, values)

        if tokens:
            self._in_transaction(lane, join)
        lane.load([], done)
        self.discard(lane, copy)

    @staticmethod
    def _is_lacking(pipeline: Any, shape: LoadedTable, copy: str) -> bool:
        """Whether the log, or some of its columns, must be created; drops a mirror in its place.

        Raises:
            TableWriteFailed: it has columns of other types.
        """
        held = _columns(pipeline, shape)
        if held and _OP not in held:
            _drop_staged(pipeline, shape)
            return True
        with pipeline.destination_client() as client:
            collected = client.get_storage_table(copy)[1]
        there, wanted = _types(held, set()), _types(collected, {TOKEN})
        other = [name for name, kind in wanted.items() if there.get(name, kind) != kind]
        if other:
            raise has_other_types(shape, other)
        return not {*wanted, _OP} <= there.keys()

    def discard(self, lane: Lane, name: str) -> None:
        lane.run("drop a table", lambda pipeline: _drop(pipeline, name))

    # -- logs ----------------------------------------------------------------------------------

    def newest(
        self,
        lane: Lane,
        shape: LoadedTable,
        columns: Sequence[str],
        keys: pa.RecordBatch,
        before: Position,
    ) -> pa.RecordBatch:
        def read(pipeline: Any) -> list[Sequence[Any]]:
            found: list[Sequence[Any]] = []
            with pipeline.sql_client() as client:
                names = _list(client, [*shape.key, *columns])
                table = client.make_qualified_table_name(shape.name)
                op, lsn, ordinal = (
                    client.escape_column_name(name) for name in (_OP, _LSN, _ORDINAL)
                )
                for condition, values in _among(client, shape, wanted):
                    query = (
                        f"SELECT {names} FROM (SELECT {names}, {op}, row_number() OVER ("
                        f"PARTITION BY {_list(client, shape.key)} ORDER BY {lsn} DESC, "
                        f"{ordinal} DESC) AS etl_place FROM {table} WHERE ({condition}) "
                        f"AND ({lsn} < %s OR ({lsn} = %s AND {ordinal} < %s))) AS numbered "
                        f"WHERE etl_place = 1 AND {op} <> 'delete'"
                    )
                    found += client.execute_sql(query, *values, place, place, before.ordinal) or []
            return found

        place, wanted = before.commit_lsn.offset, tuples_of(keys)
        return row_for_each(shape, wanted, columns, lane.run("read rows back", read))

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        def read(pipeline: Any) -> Sequence[Sequence[Any]]:
            if _OP not in _columns(pipeline, shape):
                return []
            with pipeline.sql_client() as client:
                op, lsn = (client.escape_column_name(name) for name in (_OP, _LSN))
                table = client.make_qualified_table_name(shape.name)
                query = f"SELECT max({lsn}) FROM {table} WHERE {lsn} >= %s AND {op} <> 'copy'"
                return client.execute_sql(query, since) or []

        found = lane.run("read what is logged", read)
        return int(found[0][0] or 0) if found else 0

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        def read(pipeline: Any) -> Sequence[Sequence[Any]]:
            with pipeline.sql_client() as client:
                op, lsn = (client.escape_column_name(name) for name in (_OP, _LSN))
                table = client.make_qualified_table_name(shape.name)
                query = (
                    f"SELECT {_list(client, IDENTITY)} FROM {table} "
                    f"WHERE {lsn} >= %s AND {lsn} <= %s AND {op} <> 'copy'"
                )
                return client.execute_sql(query, first, last) or []

        return identities_of(lane.run("read what is logged", read))

    # ------------------------------------------------------------------------------------------

    def _in_transaction(self, lane: Lane, work: Any) -> None:
        def run(pipeline: Any) -> None:
            with pipeline.sql_client() as client:
                if self._has_transactions:
                    with client.begin_transaction():
                        work(client)
                else:
                    work(client)

        lane.run("replace a table", run)


def _list(client: Any, names: Sequence[str]) -> str:
    return ", ".join(map(client.escape_column_name, names))


def _among(
    client: Any, shape: LoadedTable, keys: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[str, list[Any]]]:
    """Conditions for rows with some of the keys, each with its values."""
    one = " AND ".join(f"{client.escape_column_name(name)} = %s" for name in shape.key)
    for some in _slices(keys, _KEYS):
        yield " OR ".join([f"({one})"] * len(some)), [value for key in some for value in key]


def _insert(
    client: Any,
    name: str,
    copy: str,
    tokens: Sequence[str],
    into: str,
    chosen: str,
    values: Sequence[Any],
) -> None:
    """Insert the rows of some chunks."""
    table, source = (client.make_qualified_table_name(each) for each in (name, copy))
    token = client.escape_column_name(TOKEN)
    for some in _slices(tokens, _KEYS):
        among = ", ".join(["%s"] * len(some))
        client.execute_sql(
            f"INSERT INTO {table} ({into}) SELECT {chosen} FROM {source} "
            f"WHERE {token} IN ({among})",
            *values,
            *some,
        )


def _columns(pipeline: Any, shape: LoadedTable) -> Mapping[str, Any]:
    """The table's columns in the database by name; empty if there is no table."""
    with pipeline.destination_client() as client:
        if not client.is_storage_initialized():
            return {}
        found: Mapping[str, Any] = client.get_storage_table(shape.name)[1]
        return {name.lower() if name.lower() == _OP else name: c for name, c in found.items()}


def _drop(pipeline: Any, name: str) -> None:
    """Drop a table; dlt then looks at what is there before the next package."""
    with pipeline.destination_client() as client:
        if client.is_storage_initialized() and client.get_storage_table(name)[0]:
            client.drop_tables(name, delete_schema=True)


def _drop_other(pipeline: Any, shape: LoadedTable, copy: str) -> bool:
    """Drop the table if its columns differ from the copy's; returns whether it was dropped.

    dlt changes no type, and drops no column.
    """
    with pipeline.destination_client() as client:
        held = client.get_storage_table(shape.name)[1]
        wanted = client.get_storage_table(copy)[1]
    if _types(held, {DELETED}) == _types(wanted, {TOKEN}):
        return False
    _drop_staged(pipeline, shape)
    return True


def _drop_staged(pipeline: Any, shape: LoadedTable) -> None:
    """Drop the table, and with it the one that its rows are staged in."""
    with pipeline.destination_client() as client:
        client.drop_tables(shape.name, delete_schema=True)
        with client.with_staging_dataset():
            if client.is_storage_initialized():
                if client.get_storage_table(shape.name)[0]:
                    client.sql_client.drop_tables(shape.name)
                # Those of all pipelines: each looks at what is there before its next package.
                versions = client.sql_client.make_qualified_table_name(
                    client.schema.version_table_name
                )
                client.sql_client.execute_sql(f"DELETE FROM {versions} WHERE 1 = 1")


def _types(columns: Mapping[str, Any], without: set[str]) -> dict[str, tuple[Any, ...]]:
    """The types of a table's columns, as dlt reads them from the database."""
    parts = ("data_type", "precision", "scale", "timezone")
    return {
        name: tuple(column.get(part) for part in parts)
        for name, column in columns.items()
        if name.lower() not in without
    }


def _slices(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
