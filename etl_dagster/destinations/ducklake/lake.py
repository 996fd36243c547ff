"""One lake that the threads of this process share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from etl_dagster.destinations.ducklake.attaching import (
    NAME,
    LakePlace,
    attach,
    open_duckdb,
    open_lake,
)
from etl_dagster.destinations.ducklake.catalogs import FileCatalog, PostgresCatalog
from etl_dagster.destinations.ducklake.failures import LakeConflict, is_missing, no_lake, translate
from etl_dagster.destinations.ducklake.turns import FileTurns, LakeTurns, ServerTurns
from etl_dagster.errors import DestinationError


class Lake:
    """Opens the lake when it is needed.

    With a catalog at a server it stays attached, and is attached again after a failure of that.
    With a catalog in a file, which no other process could read meanwhile, it is attached for one
    transaction at a time.

    Args:
        timeout_s: how long to wait for others.
    """

    def __init__(self, place: LakePlace, *, timeout_s: float) -> None:
        self.place = place
        self._turns = _turns_of(place, timeout_s)
        self._lock = threading.Lock()
        self._open: _Open | None = None
        #: With the extensions, and without the lake.
        self._spare: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection inside a transaction, which is durable when the block ends well.

        Args:
            alone: of these, one comes after the other, in all processes.

        Raises:
            LakeConflict: another transaction was first; nothing is written.
            DestinationError: the lake can't be had, or not be written.
        """
        with self._turns.take(alone=alone), self._connection() as connection:
            try:
                connection.execute("BEGIN TRANSACTION")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def turn(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection outside of a transaction, while no other process writes alone.

        Raises:
            DestinationError: as `transaction`.
        """
        with self._turns.take(alone=True), self._connection() as connection:
            yield connection

    @contextmanager
    def reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that only reads, of a DuckDB of its own.

        Raises:
            DestinationError: there is no lake, or it can't be reached.
        """
        failure: DestinationError | None = None
        with self._turns.take(alone=False):
            try:
                with open_lake(self.place, read_only=True) as connection:
                    connection.execute(f"USE {NAME}")
                    yield connection
            except duckdb.Error as error:
                failure = translate(error, self.place)
        if failure is not None:
            raise failure from None

    def require(self) -> None:
        """Refuse to make a lake.

        Raises:
            DestinationError: there is none, or it can't be reached.
        """
        if not self.exists():
            raise no_lake(self.place)

    def exists(self) -> bool:
        """Whether there is a lake; creates nothing.

        Raises:
            DestinationError: it can't be reached, or an extension is missing.
        """
        catalog = self.place.catalog
        failure: DestinationError | None = None
        with self._lock:
            if self._open is not None and catalog.is_shared:
                return True
            # To load the extensions takes long: what was opened is used by the next transaction.
            self._spare = self._spare or open_duckdb(self.place)
        if isinstance(catalog, FileCatalog) and not catalog.path.exists():
            return False  # a turn would leave its lock there
        with self._turns.take(alone=False), self._lock:
            opened = self._spare or open_duckdb(self.place)
            self._spare = opened
            try:
                attach(opened, self.place, create=False)
                opened.execute(f"DETACH {NAME}")
            except duckdb.Error as error:
                self._spare = None
                opened.close()
                if is_missing(error):
                    return False
                failure = translate(error, self.place)
        if failure is not None:
            raise failure from None
        return True

    def close(self) -> None:
        """Detach; the next use attaches again."""
        with self._lock:
            self._retire()
            if self._spare is not None:
                self._spare.close()
                self._spare = None
        self._turns.close()

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        failure: DestinationError | None = None
        try:
            used = self._enter()
            try:
                with self._attached(used.database):
                    connection = used.database.cursor()
                    try:
                        connection.execute(f"USE {NAME}")
                        yield connection
                    finally:
                        connection.close()
            except duckdb.Error as error:
                failure = translate(error, self.place)
                if not isinstance(failure, LakeConflict):
                    # What is kept of the catalog may be a broken connection.
                    with self._lock:
                        self._retire(used)
            finally:
                self._leave(used)
        except duckdb.Error as error:
            failure = translate(error, self.place)
        # Neither as a cause nor as a context: DuckDB's text may hold a secret, or values.
        if failure is not None:
            raise failure from None

    @contextmanager
    def _attached(self, database: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """A catalog in a file is attached in turns, each of which is that of one thread."""
        if self.place.catalog.is_shared:
            yield
            return
        attach(database, self.place)
        try:
            yield
        finally:
            database.execute(f"DETACH {NAME}")

    def _enter(self) -> _Open:
        with self._lock:
            if self._open is None:
                database = self._spare or open_duckdb(self.place)
                self._spare = None
                try:
                    if self.place.catalog.is_shared:
                        attach(database, self.place)
                except BaseException:
                    database.close()
                    raise
                self._open = _Open(database)
            self._open.users += 1
            return self._open

    def _leave(self, used: _Open) -> None:
        with self._lock:
            used.users -= 1
            if not used.users and used is not self._open:
                used.database.close()

    def _retire(self, used: _Open | None = None) -> None:
        """Use the open one no longer; it is closed by the last who does."""
        if self._open is None or used not in (None, self._open):
            return
        used, self._open = self._open, None
        if not used.users:
            used.database.close()


class _Open:
    """A DuckDB with the lake attached."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self.database = database
        self.users = 0


def _turns_of(place: LakePlace, timeout_s: float) -> LakeTurns:
    catalog = place.catalog
    if isinstance(catalog, PostgresCatalog):
        return ServerTurns(catalog, timeout_s)
    assert isinstance(catalog, FileCatalog)
    return FileTurns(catalog, timeout_s)
