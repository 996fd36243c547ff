"""Connections to the database that holds the state, made again when they break.

There is no check before each use: a `meltano` command asks two or three times and ends. Nothing
relies on the session, so a pooler in transaction mode may be in between.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from etl_dagster.errors import EtlError
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
from etl_dagster.pg.cancelling import answered_within
from etl_dagster.pg.connection import Connection, connect_shared
from etl_dagster.pg.failures import Failure, derive
from etl_dagster.pg.pool import Pool
from etl_dagster.pg.settings import PINNED

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Timeouts of the role and of the URI stay, and a database that is read only on purpose stays so.
_SESSION = {
    name: value for name, value in PINNED.items() if name != "default_transaction_read_only"
} | {"idle_session_timeout": "0"}
#: How long to try to reconnect.
_GIVE_UP_AFTER_S = 20.0
#: How long an answer may take, besides the wait for a lock in the server.
_ANSWER_S = 20.0
#: The same for commands about all states at once, which may be gigabytes.
BULK_S = 3600.0
#: Idle connections that are kept; more are opened when threads need them, and closed after it.
_KEPT = 4


class StateConnections(Pool):
    """Connections to one location, in autocommit.

    Work may be done twice: also when it succeeded, and only the answer was lost.

    Args:
        lock_wait_s: how long the server may wait for a lock in one piece of work.
        is_run: whether this is for a run. No person waits for it, and Meltano makes several
            backends for one run: so the first connection of each is retried like any other.
    """

    def __init__(
        self,
        location: StateLocation,
        *,
        lock_wait_s: float = 0.0,
        is_run: Callable[[], bool] = lambda: False,
    ) -> None:
        self._location = location
        #: If a statement takes longer, its server is taken to be gone.
        self.answer_s = lock_wait_s + _ANSWER_S
        self._is_run = is_run
        super().__init__(
            lambda: connect_shared(location.dsn, _SESSION, limit_s=_ANSWER_S)[0],
            self.translate,
            kept=_KEPT,
            give_up_after_s=_GIVE_UP_AFTER_S,
            is_patient=is_run,
            on_away=_report_away,
        )

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        is_repeatable: bool = True,
        untranslated: type[psycopg.Error] | tuple[type[psycopg.Error], ...] = (),
        answer_s: float | None = None,
    ) -> T:
        """Do the work; when the connection breaks, do it again over another one.

        Args:
            answer_s: how long it may take altogether, where that is not `self.answer_s`.

        Raises:
            StateStorageError: as translated.
        """
        limited = functools.partial(_limited, work, answer_s or self.answer_s)
        began = time.monotonic()
        try:
            return super().run(limited, is_repeatable=is_repeatable, untranslated=untranslated)
        except StateStorageUnreachable as error:
            waited_s = time.monotonic() - began
            if waited_s < 1:
                raise
            solution = "Check that the server of state_backend.uri is up and can be reached."
            if self._is_run():
                solution += " Then run it again: it continues from the last state that was written."
            raise StateStorageUnreachable(
                f"{error.reason.rstrip('.')} (tried for {waited_s:.0f} s)", solution=solution
            ) from None

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
                    f"the tables for state are missing at {where}: {message}",
                    solution="Check the schema in state_backend.uri. `meltano upgrade` creates "
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
                    "options of the URI, in state_backend.postgres.options, or for the role.",
                )
            case Failure.DISK_FULL:
                return StateStorageError(
                    f"{where} has no room: {message}",
                    solution="Make room on the server's disk, and try again.",
                )
        return StateStorageError(f"{where} failed: {message}")


def _limited(work: Callable[[Connection], T], answer_s: float, connection: Connection) -> T:
    with answered_within(connection, answer_s):
        return work(connection)


def _report_away(error: EtlError) -> None:
    _log.warning("%s; trying again for up to %g s", error.reason, _GIVE_UP_AFTER_S)
