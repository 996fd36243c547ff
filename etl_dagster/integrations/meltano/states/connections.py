"""Connections to the database that holds the state, made again when they break.

There is no check before each use: a `meltano` command asks two or three times and ends. Nothing
relies on the session, so a pooler in transaction mode may be in between.
"""

from __future__ import annotations

import psycopg

from etl_dagster.integrations.meltano.states.errors import (
    StateLocked,
    StateNotStorable,
    StateStorageError,
    StateStorageForbidden,
    StateStorageRefused,
    StateStorageUnreachable,
    StateTablesMissing,
)
from etl_dagster.integrations.meltano.states.uri import StateLocation
from etl_dagster.pg.connection import connect_shared
from etl_dagster.pg.failures import Failure, derive
from etl_dagster.pg.pool import Pool
from etl_dagster.pg.settings import PINNED

#: Timeouts of the role and of the URI hold, and so does a database that is read only on purpose.
_SESSION = {
    name: value for name, value in PINNED.items() if name != "default_transaction_read_only"
} | {"idle_session_timeout": "0"}
_GIVE_UP_AFTER_S = 20.0
#: So many are kept for the next use; more are made when threads need them, and closed.
_KEPT = 4


class StateConnections(Pool):
    """To one location, in autocommit.

    Work may be done twice: also when it was done, and only the answer got lost.
    """

    def __init__(self, location: StateLocation) -> None:
        self._location = location
        super().__init__(
            lambda: connect_shared(location.dsn, _SESSION)[0],
            self.translate,
            kept=_KEPT,
            give_up_after_s=_GIVE_UP_AFTER_S,
        )

    def translate(self, error: psycopg.Error) -> StateStorageError:
        """The error in our own vocabulary, without the password."""
        return derive(error, self._translated, self._location.dsn.redact)

    def _translated(self, failure: Failure, message: str) -> StateStorageError:
        where = self._location.shown
        match failure:
            case Failure.LOST | Failure.STARTING | Failure.CONNECTIONS_FULL:
                return StateStorageUnreachable(f"{where} can't be reached: {message}")
            case Failure.REFUSED | Failure.DATABASE_MISSING:
                return StateStorageRefused(f"{where} refuses the connection: {message}")
            case Failure.TLS:
                return StateStorageRefused(
                    f"{where} refuses the connection: {message}",
                    solution="Check sslmode and sslrootcert in state_backend.uri or in "
                    "state_backend.postgres.*, and the certificates.",
                )
            case Failure.OPTIONS:
                return StateStorageRefused(
                    f"{where} refuses the connection: {message}",
                    solution="Correct the options in state_backend.uri or in "
                    "state_backend.postgres.options.",
                )
            case Failure.FORBIDDEN if "permission denied for database" in message:
                return StateStorageRefused(f"{where} refuses the connection: {message}")
            case Failure.FORBIDDEN:
                schema = self._location.schema
                user = self._location.parameters.get("user", "the role")
                return StateStorageForbidden(
                    f"the role may not do this at {where}: {message}",
                    solution=f'GRANT USAGE ON SCHEMA "{schema}" TO "{user}"; GRANT SELECT, INSERT, '
                    f'UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{user}"; (SELECT alone '
                    "is enough to read)",
                )
            case Failure.READ_ONLY:
                return StateStorageForbidden(
                    f"{where} is read only: {message}",
                    solution="Connect to the primary (?target_session_attrs=read-write finds it "
                    "among several hosts), and see whether the role has "
                    "default_transaction_read_only.",
                )
            case Failure.MISSING:
                return StateTablesMissing(
                    f"the tables for state are not at {where}: {message}",
                    solution="Check the schema in state_backend.uri. `meltano upgrade` makes "
                    "missing tables.",
                )
            case Failure.LOCKED:
                return StateLocked("", f"another transaction holds a lock at {where}: {message}")
            case Failure.VALUE | Failure.ENCODING:
                return StateNotStorable(f"Postgres can't store this: {message}")
            case Failure.CANCELED:
                return StateStorageError(
                    f"{where} gave up: {message}",
                    solution="See what keeps the server busy, or raise statement_timeout: in the "
                    "options of the URI or of state_backend.postgres.options, or of the role.",
                )
            case Failure.DISK_FULL:
                return StateStorageError(
                    f"{where} has no room: {message}",
                    solution="Make room on the server's disk, and repeat it.",
                )
        return StateStorageError(f"{where} failed: {message}")
