"""Reads one table with a few connections at once, under the snapshot of a transaction."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.threads import Background

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.destinations.postgres.connections import DestinationConnections
    from etl_dagster.pg.adbc import adbc

_READERS: Final = 2
_TURN_S: Final = 0.2
#: lock_not_available, undefined_column, undefined_table.
_CHANGES: Final = ("55P03", "42703", "42P01")

_Made = TypeVar("_Made")


class Readers(Generic[_Made]):
    """Reads queries, each by one of a few connections.

    Args:
        snapshot: as `pg_export_snapshot` gives it, of a transaction that lasts as long as this.
        queries: each is read as a whole.
        make: called with each batch, by the thread that reads it, which is a few batches ahead.
        name: of the table.
    """

    def __init__(
        self,
        connections: DestinationConnections,
        snapshot: str,
        queries: Sequence[str],
        make: Callable[[pa.RecordBatch], _Made],
        *,
        name: str,
    ) -> None:
        self._connections = connections
        self._snapshot = snapshot
        self._make = make
        self._name = name
        self._todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        for query in queries:
            self._todo.put(query)
        count = min(_READERS, len(queries))
        #: None: a thread has read all there was.
        self._arrived: queue.Queue[_Made | BaseException | None] = queue.Queue(2 * count)
        self._over = threading.Event()
        self._cursors: set[adbc.Cursor] = set()
        self._threads = [Background(self._work, name=f"read {name}") for _ in range(count)]

    def made(self) -> Iterator[_Made]:
        """What is made of the rows, in any order.

        Raises:
            TableRewritten: the table is being altered, or was.
            EtlError: it can't be read.
        """
        for thread in self._threads:
            thread.start()
        left = len(self._threads)
        try:
            while left:
                try:
                    item = self._arrived.get(timeout=_TURN_S)
                except queue.Empty:
                    self._connections.require_wanted()
                    continue
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            self._end()

    def _end(self) -> None:
        """Wait until no thread reads any more; what is under way is canceled."""
        self._over.set()
        for cursor in list(self._cursors):
            with contextlib.suppress(Exception):
                cursor.adbc_cancel()
        while any(thread.is_alive() for thread in self._threads):
            for thread in self._threads:
                thread.join(_TURN_S)
            if self._connections.is_interrupted:
                return  # a server that doesn't answer doesn't answer to this, either

    def _work(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._put(error)
        else:
            self._put(None)

    def _read(self) -> None:
        from etl_dagster.pg.adbc import adbc, first_line, in_small_batches

        try:
            with (
                self._connections.reader(self._snapshot) as connection,
                connection.cursor() as cursor,
            ):
                self._cursors.add(cursor)
                try:
                    while not self._over.is_set():
                        try:
                            query = self._todo.get_nowait()
                        except queue.Empty:
                            return
                        in_small_batches(cursor)
                        cursor.execute(query)
                        for batch in cursor.fetch_record_batch():
                            self._put(self._make(batch))
                            if self._over.is_set():
                                return
                finally:
                    self._cursors.discard(cursor)
        except adbc.Error as error:
            raise self._failure(error.sqlstate, first_line(error)) from None
        except OSError as error:
            # What goes wrong after the first batch comes through Arrow, without an SQLSTATE.
            raise self._failure(None, first_line(error)) from None

    def _failure(self, sqlstate: str | None, message: str) -> EtlError:
        if sqlstate in _CHANGES:
            return TableRewritten(f"{self._name} is altered at the destination while it is read")
        return self._connections.failure(sqlstate, message)

    def _put(self, item: _Made | BaseException | None) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived.put(item, timeout=_TURN_S)
                return
