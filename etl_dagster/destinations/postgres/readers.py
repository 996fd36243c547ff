"""Reads one table with a few connections at once, under the snapshot of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.read_ahead import ReadAhead

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.destinations.postgres.connections import DestinationConnections
    from etl_dagster.pg.adbc import adbc

_READERS: Final = 2
#: lock_not_available, undefined_column, undefined_table.
_CHANGES: Final = ("55P03", "42703", "42P01")

_Made = TypeVar("_Made")


def read_queries(
    connections: DestinationConnections,
    snapshot: str,
    queries: Sequence[str],
    make: Callable[[pa.RecordBatch], _Made],
    *,
    name: str,
) -> Iterator[_Made]:
    """What is made of what the queries read, in any order.

    Args:
        snapshot: as `pg_export_snapshot` gives it, of a transaction that lasts as long as this.
        queries: each is read as a whole, by one of a few connections.
        make: called with each batch, by the thread that reads it, which is a few batches ahead.
        name: of the table.

    Raises:
        TableRewritten: the table is being altered, or was.
        EtlError: it can't be read.
    """

    @contextmanager
    def opened() -> Iterator[_Queries[_Made]]:
        from etl_dagster.pg.adbc import adbc, first_line

        try:
            with connections.reader(snapshot) as connection, connection.cursor() as cursor:
                yield _Queries(cursor, make)
        except adbc.Error as error:
            raise failure(error.sqlstate, first_line(error)) from None
        except OSError as error:
            # What goes wrong after the first batch comes through Arrow, without an SQLSTATE.
            raise failure(None, first_line(error)) from None

    def failure(sqlstate: str | None, message: str) -> EtlError:
        if sqlstate in _CHANGES:
            return TableRewritten(f"{name} is altered at the destination while it is read")
        return connections.failure(sqlstate, message)

    yield from ReadAhead(
        queries,
        opened,
        count=_READERS,
        name=f"read {name}",
        require_wanted=connections.require_wanted,
        is_given_up=lambda: connections.is_interrupted,
    ).made()


class _Queries(Generic[_Made]):
    """Reads queries on one connection."""

    def __init__(self, cursor: adbc.Cursor, make: Callable[[pa.RecordBatch], _Made]) -> None:
        self._cursor = cursor
        self._make = make

    def read(self, query: str) -> Generator[_Made, None, None]:
        from etl_dagster.pg.adbc import in_small_batches

        in_small_batches(self._cursor)
        self._cursor.execute(query)
        for batch in self._cursor.fetch_record_batch():
            yield self._make(batch)

    def cancel(self) -> None:
        self._cursor.adbc_cancel()
