"""Connections to the destination, and what their failures mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.adapt import Loader

from etl_dagster.destinations.postgres.watch import GRACE_S, TELL_AFTER_S, TransactionWatch
from etl_dagster.errors import (
    BatchTooLarge,
    ConfigError,
    DestinationError,
    DestinationUnreachable,
    TableWriteFailed,
)
from etl_dagster.model.schema import TableId
from etl_dagster.pg.advisory import text_key
from etl_dagster.pg.blocking import Blocker, fetch_blockers
from etl_dagster.pg.cancelling import Abandoned, unless_stopped
from etl_dagster.pg.connection import Connection, connect_shared, server_pid
from etl_dagster.pg.dsn import Dsn, DsnError, tcp_settings
from etl_dagster.pg.failures import (
    Failure,
    derive,
    failure_of,
    failure_of_code,
    failure_of_text,
    marked,
    message_of,
    without_values,
)
from etl_dagster.pg.pool import Pool, does_work
from etl_dagster.pg.settings import (
    MONEY,
    PIN_NEWER_LOCALLY,
    PINNED,
    TIMEOUTS,
    locally,
    pin_transaction,
)

if TYPE_CHECKING:
    from etl_dagster.pg.adbc import adbc

_DEFAULTS: Final = {"connect_timeout": "10", **tcp_settings(30)}
_GIVE_UP_AFTER_S: Final = 15.0
_KEPT: Final = 4
#: Of a reader.
_READER_LOCK_TIMEOUT: Final = "2s"
#: One at a time, for all that write to a database; shared by those that only write rows.
ALONE: Final = text_key("etl_dagster", "destination")
#: What no table is to blame for.
_OF_ALL: Final = frozenset(
    {
        Failure.REFUSED,
        Failure.TLS,
        Failure.DATABASE_MISSING,
        Failure.OPTIONS,
        Failure.LIMIT_REACHED,
    }
)
_NUMERIC_OID: Final = 1700
#: program_limit_exceeded and its kinds: a row, a statement or a value past Postgres' own limits.
_TOO_LARGE: Final = ("54000", "54001")


class _WholeNumber(Loader):
    """The ledger's numerics are LSNs and epochs."""

    def load(self, data: Any) -> Any:
        return int(bytes(data))


class DestinationConnections:
    """A few connections, each of which is in a transaction while it is lent.

    What is written is one transaction each, so a pooler may give it any connection of its own.
    """

    def __init__(self, dsn: str, *, tell_after_s: float = TELL_AFTER_S) -> None:
        """Args:
        dsn: a libpq URI or key/value string.
        tell_after_s: what a write waits for this long is looked up.

        Raises:
            ConfigError: it can't be used.
        """
        try:
            parsed = Dsn.parse(dsn)
        except DsnError as error:
            mistake = f"destination.dsn: {error}"
            raise ConfigError([mistake], origin="destination") from None
        self._dsn = parsed.with_defaults(**_DEFAULTS, application_name="etl_dagster destination")
        self.uri = parsed.uri
        money = {} if "lc_monetary" in parsed.get("options") else MONEY
        # A database that an administrator, or a provider, made read only is not written.
        pinned = {k: v for k, v in PINNED.items() if k != "default_transaction_read_only"}
        self._settings = {**pinned, **TIMEOUTS, **money}
        #: A pooler is in between, which may share sessions: each transaction pins its settings.
        self._is_pooled = False
        self._pool = Pool(
            self._connect,
            self.translate,
            kept=_KEPT,
            give_up_after_s=_GIVE_UP_AFTER_S,
            works=self._works,
        )
        self._watch = TransactionWatch(self._fetch_blockers, tell_after_s=tell_after_s)

    def _connect(self) -> Connection:
        try:
            return unless_stopped(
                self._make,
                self._watch.interrupted,
                after_s=GRACE_S,
                name="connecting to the destination",
            )
        except Abandoned:
            raise _interrupted() from None

    def _make(self) -> Connection:
        connection, is_own = connect_shared(self._dsn, self._settings)
        self._is_pooled = not is_own
        connection.adapters.register_loader(_NUMERIC_OID, _WholeNumber)
        return connection

    def _works(self, connection: Connection) -> bool:
        with self._watch.watching(connection, self._pid_of(connection)):
            return does_work(connection)

    def _fetch_blockers(self, pid: int) -> list[Blocker]:
        with self._pool.borrow(is_checked=True) as connection:
            return fetch_blockers(connection, pid)

    @contextmanager
    def transaction(
        self, *, alone: bool = False, pipeline: str | None = None, writes: bool = True
    ) -> Iterator[Connection]:
        """A connection in a transaction, which is committed when the block ends well.

        Args:
            alone: no other process has one with this, or with a pipeline, at the same time.
            pipeline: no other process has one with the same at the same time.
            writes: after `interrupt`, none begins that does.

        Raises:
            DestinationError: in the server's words, with what to do.
            DestinationUnreachable: `interrupt` ended it.
        """
        if writes and self._watch.is_interrupted:
            raise _interrupted()
        try:
            with (
                self._pool.borrow(is_checked=True) as connection,
                self._watch.watching(connection, self._pid_of(connection)) as watched,
                connection.transaction(),
            ):
                if self._is_pooled:
                    pin_transaction(connection, self._settings)
                    watched.pid = server_pid(connection)
                if alone:
                    connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [ALONE])
                elif pipeline is not None:
                    connection.execute(
                        "SELECT pg_catalog.pg_advisory_xact_lock_shared(%s), "
                        "pg_catalog.pg_advisory_xact_lock(%s)",
                        [ALONE, text_key("etl_dagster", "destination", pipeline)],
                    )
                yield connection
        except psycopg.errors.QueryCanceled as error:
            is_ours = self._watch.is_interrupted
            failure = _interrupted() if is_ours else self.translate(error)
        except psycopg.Error as error:
            is_ours = self._watch.is_interrupted and failure_of(error).is_lost
            failure = _interrupted() if is_ours else self.translate(error)
            if failure_of(error) is Failure.READ_ONLY:
                # A session keeps the default that it began with.
                self._pool.close()
        else:
            return
        # The server's own text may hold a password or a row's values, and a log shows causes.
        raise failure from None

    @contextmanager
    def reader(self, snapshot: str) -> Iterator[adbc.Connection]:
        """A connection that reads as Arrow, in a transaction that has the snapshot of another.

        It doesn't wait long for a lock: who has asked for the table before may wait for the
        transaction with the snapshot.

        Raises:
            adbc.Error: the server is away, or refuses.
        """
        from etl_dagster.pg.adbc import connect

        conninfo = self._dsn.conninfo(client_encoding="UTF8")
        settings = {**self._settings, "lock_timeout": _READER_LOCK_TIMEOUT}
        with contextlib.closing(connect(conninfo)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
                for query in (locally(settings), PIN_NEWER_LOCALLY):
                    cursor.execute(query)
                    cursor.fetchall()
            yield connection

    @property
    def is_interrupted(self) -> bool:
        return self._watch.is_interrupted

    def require_wanted(self) -> None:
        """Raises:
        DestinationUnreachable: `interrupt` was called.
        """
        if self.is_interrupted:
            raise _interrupted()

    def failure(self, sqlstate: str | None, message: str) -> DestinationError:
        """What a client other than psycopg was told, in our own vocabulary."""
        if self.is_interrupted:
            return _interrupted()
        found = failure_of_code(sqlstate, message) if sqlstate else failure_of_text(message)
        # What comes through Arrow has no SQLSTATE that tells whether it quotes a value.
        told = without_values(self._dsn.redact(message))
        return marked(self._translated(found, told), found)

    def _pid_of(self, connection: Connection) -> int | None:
        return None if self._is_pooled else connection.info.backend_pid

    def interrupt(self) -> None:
        """Begin no more writes; cancel what doesn't end within a moment. From any thread."""
        self._watch.interrupt()

    def waiting_for(self) -> str | None:
        """The lock that a transaction has waited for, for some seconds, and who holds it."""
        return self._watch.waiting_for()

    def close(self) -> None:
        """Disconnect; the next use connects again."""
        self._pool.close()

    @contextmanager
    def blaming(self, table_id: TableId, name: str) -> Iterator[None]:
        """Turn failures that the table is to blame for into `TableWriteFailed`.

        Messages keep no value of a row.
        """
        try:
            yield
        except psycopg.Error as error:
            failure = failure_of(error)
            if failure.is_passing or failure in _OF_ALL or _is_ledgers(error):
                raise
            if error.sqlstate in _TOO_LARGE:
                raise
            message = self._dsn.redact(message_of(error))
            solution = _table_solution(error, failure)
        else:
            return
        text = f"Postgres refuses {name}: {message}"
        raise TableWriteFailed(table_id, text, solution=solution) from None

    def translate(self, error: psycopg.Error) -> DestinationError:
        """The error in our own vocabulary, without the password."""
        if _is_ledgers(error):
            return DestinationUnreachable("another process has just written the same")
        if error.sqlstate in _TOO_LARGE:
            return BatchTooLarge(f"the destination can't take it: {message_of(error)}")
        return derive(error, self._translated, self._dsn.redact)

    def _translated(self, failure: Failure, message: str) -> DestinationError:
        match failure:
            case Failure.LOST | Failure.STARTING | Failure.CONNECTIONS_FULL:
                return DestinationUnreachable(
                    f"the destination can't be reached: {message}",
                    solution="Check destination.dsn and that the server is up; the pipeline "
                    "reconnects by itself.",
                )
            case Failure.REFUSED | Failure.DATABASE_MISSING | Failure.OPTIONS:
                return DestinationError(
                    f"the destination refuses the connection: {message}",
                    solution="Check user, password, database and options in destination.dsn, and "
                    "the server's pg_hba.conf.",
                )
            case Failure.TLS:
                return DestinationError(
                    f"the destination refuses the connection: {message}",
                    solution="Check sslmode and sslrootcert in destination.dsn, and the "
                    "certificates.",
                )
            case Failure.FORBIDDEN:
                return DestinationError(f"the destination refuses us: {message}", solution=GRANTS)
            case Failure.READ_ONLY:
                return DestinationUnreachable(
                    f"the destination takes no writes now: {message}",
                    solution="After a failover, point destination.dsn to the primary "
                    "(target_session_attrs=read-write finds it among several hosts). Else see "
                    "who turned default_transaction_read_only on, and why. The pipeline retries.",
                )
            case Failure.DISK_FULL:
                return DestinationUnreachable(
                    f"the destination has no room: {message}",
                    solution="Make room on its server's disk. The pipeline retries.",
                )
            case Failure.CONFLICT | Failure.LOCKED | Failure.CANCELED | Failure.RESOURCES_SHORT:
                return DestinationUnreachable(
                    f"the destination gave up: {message}",
                    solution="No action needed: the pipeline tries again.",
                )
        return DestinationError(f"the destination failed: {message}")


#: What a role needs.
GRANTS: Final = (
    "Grant the user of destination.dsn CREATE on the database (GRANT CREATE ON DATABASE ... TO "
    "...), or make the schemas _etl, _etl_quarantine and those of the source's tables with it as "
    "their owner."
)


def _interrupted() -> DestinationUnreachable:
    return DestinationUnreachable(
        "what was under way was given up: the pipeline is stopping",
        solution="No action needed: the next start resumes where this one stopped.",
    )


def _is_ledgers(error: psycopg.Error) -> bool:
    """Whether another process wrote a chunk at the same time."""
    return isinstance(error, psycopg.errors.UniqueViolation) and error.diag.schema_name == "_etl"


def _table_solution(error: psycopg.Error, failure: Failure) -> str | None:
    if isinstance(error, psycopg.errors.DuplicateTable):
        return (
            "Something of that name is there that the pipeline has not made: rename or drop it, "
            "or write to another database; then retry the table."
        )
    if isinstance(error, psycopg.errors.UndefinedTable):
        return (
            "If the table was dropped or renamed at the destination, reset it: the copy creates "
            "it again. Otherwise fix the cause, then retry the table."
        )
    if failure is Failure.FORBIDDEN:
        return f"{GRANTS} Then retry the table."
    if failure in (Failure.VALUE, Failure.ENCODING):
        return (
            "Compare the column's type at the destination with the source's, then retry the "
            "table: the copy creates it again."
        )
    return None
