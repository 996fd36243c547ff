"""Connections of the ADBC driver, which reads rows as Arrow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, cast

import adbc_driver_manager
import adbc_driver_postgresql

from etl_dagster.lazy import imported_later

# The driver only needs it to write datasets. It imports pandas where that is installed, which takes
# some 50 MB; and DuckDB would use it once it is there.
with imported_later("pyarrow.dataset"):
    from adbc_driver_manager import dbapi as adbc

__all__ = ["adbc", "connect", "first_line", "in_small_batches"]

_log = logging.getLogger(__name__)

#: What the driver puts into one record batch, bytes; bounds the memory of what is being read.
_BATCH_BYTES: Final = 4 * 1024**2


class _Catalog:
    """What the driver keeps of the types of a database, as `adbc.Connection` wants it.

    The driver reads all columns of all tables for it. Connections that share it do without, which
    counts where there are thousands of tables. What it doesn't know of types that came later does
    no harm: only types that Postgres brings along are read in its own way.
    """

    def __init__(self, conninfo: str) -> None:
        self.database = adbc_driver_postgresql.connect(conninfo)

    def close(self) -> None:
        """Called at the end of each connection; others may share it."""


class _Connection(adbc_driver_manager.AdbcConnection):
    """A connection that shares its catalog with others."""

    def close(self) -> None:
        close_for_good(super().close)


def close_for_good(close: Callable[[], None]) -> None:
    """Close a connection, without failing if the driver has miscounted its connections.

    The driver counts the open connections of a catalog without a lock. If several threads open and
    close connections at once, the count may be too low. The driver then reports an internal error
    for the last one, although it closes each connection before it counts.

    Raises:
        adbc.Error: anything else.

    Source: arrow-adbc, c/driver/postgresql/database.cc, `PostgresDatabase::Disconnect`.
    """
    try:
        close()
    except adbc.InternalError as error:
        _log.debug("a connection was closed: %s", first_line(error))


#: By connection parameters; of the databases that this process reads.
_catalogs: dict[str, _Catalog] = {}
_catalogs_lock = threading.Lock()
_MOST_CATALOGS = 8


def connect(conninfo: str) -> adbc.Connection:
    """A connection, in a transaction.

    Raises:
        adbc.Error: the server is away, or refuses us.
    """
    with _catalogs_lock:
        catalog = _catalogs.get(conninfo)
        if catalog is None:
            if len(_catalogs) >= _MOST_CATALOGS:
                _catalogs.clear()
            catalog = _catalogs[conninfo] = _Catalog(conninfo)
    connection = _Connection(catalog.database)
    return adbc.Connection(cast(adbc_driver_manager.AdbcDatabase, catalog), connection)


def in_small_batches(cursor: adbc.Cursor) -> None:
    """Have what the cursor executes next come in batches of a few MiB."""
    cursor.adbc_statement.set_options(
        **{"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)}
    )


def first_line(error: Exception) -> str:
    """The server's words without what follows; never a connection string."""
    return str(error).strip().splitlines()[0]
