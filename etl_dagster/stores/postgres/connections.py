"""Connections to the state store, made again when they break."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_dumps

from etl_dagster.backoff import Backoff
from etl_dagster.errors import ConfigError, StoreError, StoreUnreachable
from etl_dagster.pg.failures import Failure, failure_of, message_of
from etl_dagster.pg.settings import pin_session, pin_transaction

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

#: A connection that a firewall forgot is noticed within half a minute.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: How an operation that may be repeated is, when the connection breaks.
_FIRST_DELAY_S, _LONGEST_DELAY_S, _GIVE_UP_AFTER_S = 0.05, 2.0, 15.0
#: What may be over within seconds.
_PASSING = (
    Failure.LOST,
    Failure.STARTING,
    Failure.CONNECTIONS_FULL,
    Failure.RESOURCES_SHORT,
    Failure.CONFLICT,
    Failure.LOCKED,
    Failure.CANCELED,
)
#: How often a pooler is tried, which other clients use at the same time.
_SESSION_TRIES = 10


class Connections:
    """A small pool, plus single connections for what needs one of its own. Opened when used."""

    def __init__(
        self, dsn: str, *, application_name: str, max_size: int, place: str = "state_store.dsn"
    ) -> None:
        """Args:
        place: what the DSN is called in messages about it.
        """
        try:
            parts = conninfo_to_dict(dsn)
        except psycopg.Error:
            # libpq's message repeats what it could not read, password and all.
            raise ConfigError(
                [f"{place}: not a libpq URI or key/value string"], origin="state store"
            ) from None
        self._place = place
        given = {"application_name": application_name, **parts}
        self._conninfo = make_conninfo(**{**_DEFAULTS, **given, "client_encoding": "UTF8"})
        self._password = str(parts.get("password") or "")
        self._max_size = max_size
        self._lock = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool[Connection] | None = None
        #: A pooler is in between, which may share sessions: each transaction pins its settings.
        self._is_pooled = False

    def connect(self) -> Connection:
        """A connection of its own, in autocommit; the caller closes it.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us.
        """
        try:
            # A pooler may give each transaction another server connection, which knows nothing of
            # what was prepared on the one before.
            connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            raise self.translate(error) from None
        try:
            self._pin(connection)
        except psycopg.Error as error:
            connection.close()
            raise self.translate(error) from None
        return connection

    def _pin(self, connection: Connection) -> None:
        """Pin the session's settings. The connection is in autocommit."""
        self._is_pooled = not pin_session(connection)
        # A database in SQL_ASCII takes UTF-8 as it comes, but no escape for anything but ASCII.
        set_json_dumps(_dumps, connection)
        if self._is_pooled:
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            connection.read_only = connection.deferrable = False

    def _configure(self, connection: Connection) -> None:
        connection.autocommit = True
        self._pin(connection)
        connection.autocommit = False

    def connect_session(self) -> Connection:
        """A connection that keeps its session: what it locks and listens to stays its own.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us, or a pooler shares sessions among its clients.
        """
        connection = self.connect()
        try:
            if not self._keeps_session(connection):
                raise StoreError(
                    f"{self._place} leads to a pooler in transaction mode, where leases can't be "
                    "held and changes not be heard",
                    solution="Set state_store.session_dsn to the server itself, or to a pooler in "
                    "session mode.",
                )
            pin_session(connection, is_own=True)
        except psycopg.Error as error:
            connection.close()
            raise self.translate(error) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _keeps_session(self, connection: Connection) -> bool:
        pid = _server_pid(connection)
        if pid == connection.info.backend_pid:
            return True  # a server tells its own process, a pooler makes a number up
        # A pooler in transaction mode gives a transaction whichever server connection is free, most
        # often the one used last. Other clients change which one that is, so it is asked many
        # times, and with one and two connections held.
        with self.connect() as first, self.connect() as second:
            for _ in range(_SESSION_TRIES):
                with first.transaction():
                    if pid in (_server_pid(first), _server_pid(second)):
                        return False
                    if _server_pid(connection) != pid:
                        return False
                if _server_pid(connection) != pid:
                    return False
        return True

    def run(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        """Do the work in one transaction.

        When the connection breaks, work that is repeatable is done again. Other work only is when
        it was not begun, or Postgres says that it was rolled back.

        Raises:
            StoreUnreachable: the connection broke, and did so again for some seconds.
            StoreError: the server refused.
        """
        pauses = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S, give_up_after_s=_GIVE_UP_AFTER_S)
        while True:
            begun = False
            try:
                with self._open_pool().connection() as connection:
                    begun = True
                    if self._is_pooled:
                        pin_transaction(connection)
                    return work(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                failure = failure_of(error)
                if failure not in _PASSING:
                    raise self.translate(error) from None
                # Postgres says so of a conflict: it was rolled back.
                if begun and not repeatable and failure is not Failure.CONFLICT:
                    raise self.translate(error) from None
                if pauses.is_exhausted:
                    raise self.translate(error) from None
            except psycopg.Error as error:
                raise self.translate(error) from None
            time.sleep(pauses.next_delay_s())

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def translate(self, error: psycopg.Error) -> StoreError:
        """The error in our own vocabulary, without the password."""
        message = message_of(error)
        if self._password:
            message = message.replace(self._password, "***")
        failure = failure_of(error)
        translated = self._translated(failure, message)
        translated.retryable = failure.is_passing
        translated.is_starting = failure is Failure.STARTING
        return translated

    def _translated(self, failure: Failure, message: str) -> StoreError:
        match failure:
            case Failure.LOST | Failure.STARTING | Failure.CONNECTIONS_FULL:
                return StoreUnreachable(
                    f"the state store can't be reached: {message}",
                    solution=f"Check {self._place} and that the server is up; the pipeline "
                    "reconnects by itself.",
                )
            case Failure.REFUSED | Failure.DATABASE_MISSING | Failure.OPTIONS:
                return StoreError(
                    f"the state store refuses the connection: {message}",
                    solution=f"Check user, password, database and options in {self._place}, and "
                    "the server's pg_hba.conf.",
                )
            case Failure.TLS:
                return StoreError(
                    f"the state store refuses the connection: {message}",
                    solution=f"Check sslmode and sslrootcert in {self._place}, and the "
                    "certificates.",
                )
            case Failure.FORBIDDEN:
                return StoreError(
                    f"the state store refuses us: {message}",
                    solution="Grant the user CONNECT on the database, USAGE on the store's "
                    "schema, and SELECT, INSERT, UPDATE, DELETE on its tables; or let it create "
                    "them: GRANT CREATE ON DATABASE ...",
                )
            case Failure.READ_ONLY:
                return StoreUnreachable(
                    f"the state store takes no writes now: {message}",
                    solution=f"After a failover, point {self._place} to the primary "
                    "(target_session_attrs=read-write finds it among several hosts). The "
                    "pipeline retries.",
                )
            case Failure.DISK_FULL:
                return StoreUnreachable(
                    f"the state store has no room: {message}",
                    solution="Make room on its server's disk. The pipeline retries.",
                )
            case Failure.CONFLICT | Failure.LOCKED | Failure.CANCELED | Failure.RESOURCES_SHORT:
                return StoreError(f"the state store gave up: {message}")
            case Failure.ENCODING:
                return StoreError(
                    f"the state store's database can't hold a name or a message: {message}",
                    solution="Keep the state store in a database that was created with ENCODING "
                    f"'UTF8': set {self._place}.",
                )
        return StoreError(f"the state store failed: {message}")

    def _open_pool(self) -> psycopg_pool.ConnectionPool[Connection]:
        with self._lock:
            if self._pool is None:
                # Says what is wrong at once; the pool would only time out.
                self.connect().close()
                self._pool = psycopg_pool.ConnectionPool(
                    self._conninfo,
                    kwargs={"prepare_threshold": None},
                    min_size=1,
                    max_size=self._max_size,
                    num_workers=1,
                    timeout=_GIVE_UP_AFTER_S,
                    reconnect_timeout=2 * _GIVE_UP_AFTER_S,
                    configure=self._configure,
                    check=psycopg_pool.ConnectionPool.check_connection,
                    name="etl-store",
                    open=True,
                )
            return self._pool


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _server_pid(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
