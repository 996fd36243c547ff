"""Connections to the state store, made again when they break."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import set_json_dumps

from etl_dagster.errors import ConfigError, StoreError, StoreUnreachable
from etl_dagster.pg.connection import Connection, connect_shared, keeps_session
from etl_dagster.pg.dsn import Dsn, DsnError, tcp_settings
from etl_dagster.pg.failures import Failure, derive
from etl_dagster.pg.pool import SOON_OVER, Pool
from etl_dagster.pg.settings import pin_session, pin_transaction

T = TypeVar("T")

#: A connection that a firewall forgot is noticed within half a minute.
_DEFAULTS = {"connect_timeout": "10", **tcp_settings(30)}
_GIVE_UP_AFTER_S = 15.0


class StoreConnections:
    """A small pool, plus single connections for what needs one of its own. Opened when used."""

    def __init__(
        self, dsn: str, *, application_name: str, max_size: int, place: str = "state_store.dsn"
    ) -> None:
        """Args:
        place: what the DSN is called in messages about it.

        Raises:
            ConfigError: the DSN can't be used.
        """
        self._place = place
        self._dsn = _parse(dsn, place).with_defaults(**_DEFAULTS, application_name=application_name)
        #: A pooler is in between, which may share sessions: each transaction pins its settings.
        self._is_pooled = False
        self._pool = Pool(
            self._connect,
            self.translate,
            kept=max_size,
            at_most=max_size,
            give_up_after_s=_GIVE_UP_AFTER_S,
            # Nothing of ours sets a timeout: an operator canceled it.
            retried=SOON_OVER | {Failure.LOCKED, Failure.CANCELED},
        )

    def connect(self) -> Connection:
        """A connection of its own, in autocommit; the caller closes it.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us.
        """
        return self._pool.connect()

    def _connect(self) -> Connection:
        connection, is_own = connect_shared(self._dsn)
        self._is_pooled = not is_own
        # A database in SQL_ASCII takes UTF-8 as it comes, but no escape for anything but ASCII.
        set_json_dumps(_dumps, connection)
        if self._is_pooled:
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            connection.read_only = connection.deferrable = False
        return connection

    def connect_session(self) -> Connection:
        """A connection that keeps its session: what it locks and listens to stays its own.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us, or a pooler shares sessions among its clients.
        """
        connection = self.connect()
        try:
            if not keeps_session(connection, self._connect):
                raise StoreError(
                    f"{self._place} leads to a pooler in transaction mode, where leases can't be "
                    "held and notifications don't arrive",
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

    def run(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        """Do the work in one transaction.

        When the connection breaks, work that is repeatable is done again. Other work only is when
        it was not begun, or Postgres says that it was rolled back.

        Raises:
            StoreUnreachable: the connection broke, and did so again for some seconds.
            StoreError: the server refused.
        """

        def transaction(connection: Connection) -> T:
            with connection.transaction():
                if self._is_pooled:
                    pin_transaction(connection)
                return work(connection)

        return self._pool.run(transaction, is_repeatable=repeatable)

    def close(self) -> None:
        """Disconnect; the next use connects again."""
        self._pool.close()

    def translate(self, error: psycopg.Error) -> StoreError:
        """The error in our own vocabulary, without the password."""
        return derive(error, self._translated, self._dsn.redact)

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


def _parse(dsn: str, place: str) -> Dsn:
    try:
        return Dsn.parse(dsn)
    except DsnError as error:
        raise ConfigError([f"{place}: {error}"], origin="state store") from None


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
