"""The state backend that Meltano finds for ``postgres://`` and ``postgresql://``."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meltano.core.error import MeltanoError as MeltanoCoreError
from meltano.core.state_store.base import (
    MeltanoState,
    MissingStateBackendSettingsError,
    StateIDLockedError,
    StateStoreManager,
    UnsupportedStateBackendURIError,
)

from etl_dagster.integrations.meltano.states.errors import (
    StateCorrupt,
    StateLocked,
    StateStorageError,
    StateStorageRefused,
    StateUriError,
)
from etl_dagster.integrations.meltano.states.locks import StateLease
from etl_dagster.integrations.meltano.states.records import (
    NewState,
    StoredState,
    without_nonfinite,
)
from etl_dagster.integrations.meltano.states.storage import StateStorage

_log = logging.getLogger(__name__)


class PostgresStateError(MeltanoCoreError):
    """What went wrong and what to do; Meltano shows it in one line, without a traceback."""


class PostgresStateUriError(PostgresStateError, UnsupportedStateBackendURIError):
    """The URI or a setting can't be understood."""


class PostgresStateSettingsError(PostgresStateError, MissingStateBackendSettingsError):
    """The server doesn't accept user, password or database."""


class PostgresStateLockedError(PostgresStateError, StateIDLockedError):
    """Another process holds the lock or the run lease of the state ID."""


class PostgresStateBackend(StateStoreManager):
    """State in PostgreSQL. Safe for threads and processes; connects at the first use.

    Args:
        uri: ``postgres://user:password@host:port/database/schema``, or any URI of libpq's.
        settings: those of `settings.py`, such as host and password; each wins over the URI. And
            Meltano's own ``lock_timeout_seconds``: a lock that was not renewed for this long
            has expired; ``lock_retry_seconds``: the longest pause between two attempts at a lock.

    Raises:
        PostgresStateError: by any method, with a reason and an instruction.
    """

    def __init__(self, uri: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        with _meltano_errors():
            # Meltano hands over None for what isn't set.
            self.storage = StateStorage.from_uri(uri, settings, run_id=_current_run_id)
        self._may_write = False
        # Meltano doesn't close the managers of its runs.
        self._finalizer = weakref.finalize(self, self.storage.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.storage.location.shown!r})"

    @property
    def label(self) -> str:
        """Where the states are, for Meltano's log; without user and password."""
        return f"PostgreSQL ({self.storage.location.shown})"

    def set(self, state: MeltanoState) -> None:
        """Replace both halves. Within `acquire_lock`, the end of the block may raise the error.

        In a run, a bookmark that is NaN or Infinity is left out, with a warning that names it; its
        stream is read again from an earlier point. Refusing the state would lose all other
        bookmarks, too.
        """
        partial, completed = (
            _storable(state.state_id, half) for half in (state.partial_state, state.completed_state)
        )
        with _meltano_errors():
            self._warn_of_run(state.state_id)
            self.storage.set(state.state_id, partial=partial, completed=completed)

    def get(self, state_id: str) -> MeltanoState | None:
        """The state, as new objects; empty halves are ``{}``."""
        # At the start of a run, Meltano logs the reason without the instruction.
        with _meltano_errors(is_reason_alone=_current_run_id() is not None):
            if _current_run_id() is not None and not self._may_write:
                # A run whose state can't be written should fail before it loads anything: if a
                # later write fails, Meltano may still end the run as if nothing had happened.
                self.storage.require_writable()
                self._may_write = True
            stored = self.storage.get(state_id)
            try:
                return _to_meltano(stored) if stored else None
            except StateCorrupt as error:
                if _command()[:2] != ["list", "state"]:
                    raise
                # One corrupt state must not keep the others from being listed.
                _log.warning("%s; %s", error.reason, error.solution)
                return MeltanoState(state_id=state_id, partial_state={}, completed_state={})

    def delete(self, state_id: str) -> None:
        """Forget the state; its history stays."""
        with _meltano_errors():
            self._warn_of_run(state_id)
            self.storage.delete(state_id)

    def clear_all(self) -> int:
        """Forget all states in one transaction; returns how many there were."""
        with _meltano_errors():
            return self.storage.clear_all()

    def get_all(self, pattern: str | None = None) -> list[MeltanoState]:
        """All states that match, read in one query; corrupt ones are left out, with a warning."""
        states = []
        with _meltano_errors():
            for stored in self.storage.get_all(pattern):
                try:
                    states.append(_to_meltano(stored))
                except StateCorrupt as error:
                    _log.warning("%s; it is left out. %s", error.reason, error.solution)
        return states

    def set_all(self, states: Iterable[MeltanoState]) -> int:
        """Replace many states in one transaction: all or none."""
        with _meltano_errors():
            return self.storage.set_all(
                NewState(state.state_id, state.partial_state, state.completed_state)
                for state in states
            )

    def get_state_ids(self, pattern: str | None = None) -> list[str]:
        """The IDs that match ``* ? [..]``, case-sensitive, in order."""
        with _meltano_errors():
            return self.storage.list_ids(pattern)

    @contextlib.contextmanager
    def acquire_lock(self, state_id: str, *, retry_seconds: float = 1) -> Iterator[None]:
        """Lock the state against other processes; what the block does is one transaction.

        Args:
            retry_seconds: the longest pause between two attempts, unless ``lock_retry_seconds``
                is shorter.

        Raises:
            PostgresStateLockedError: another process holds it, and is alive.
        """
        try:
            with _meltano_errors(), self.storage.lock(state_id, retry_seconds=retry_seconds):
                yield
        except PostgresStateError as error:
            _spare_the_traceback(error)
            raise

    @contextlib.contextmanager
    def run_lease(
        self, state_id: str, *, wait_seconds: float = 0.0, lease_seconds: float = 60.0
    ) -> Iterator[StateLease]:
        """Only one process runs a pipeline with this state ID during the block, on any machine.

        Raises:
            PostgresStateLockedError: another process still runs it after `wait_seconds`; the
                message names it.
        """
        with _meltano_errors():
            lease = self.storage.run_lease(
                state_id, wait_seconds=wait_seconds, lease_seconds=lease_seconds
            )
            with lease as held:
                yield held

    def migrate(self) -> None:
        """Create or upgrade the tables; `meltano upgrade` calls it."""
        with _meltano_errors():
            self.storage.migrate()

    def _warn_of_run(self, state_id: str) -> None:
        """Warn a user who changes a state that a run under way will write again.

        Whether there is such a run, its run lease tells.
        """
        if _command()[1:2] != ["state"]:
            return
        for row in self.storage.locks():
            if (row.kind, row.state_id, row.is_expired) == ("run", state_id, False):
                _log.warning(
                    "state %r is in use by a run of %s (host %s, pid %s%s), which will overwrite "
                    "this change: change it after that run has ended",
                    state_id,
                    row.owner,
                    row.host,
                    row.pid,
                    f", run {row.run_id}" if row.run_id else "",
                )

    def close(self) -> None:
        """Close idle connections. The backend may be used again; nothing is left to be written."""
        self.storage.close()


def _storable(state_id: str, half: Any) -> Any:
    """The half as a run may store it: without NaN and Infinity.

    Outside of a run it is returned as it is: what a user writes is refused as a whole.
    """
    if _current_run_id() is None or not isinstance(half, Mapping):
        return half
    kept, gone = without_nonfinite(half)
    for path in gone:
        _log.warning(
            "state %r: %s is NaN or Infinity, which JSON cannot represent, and is left out",
            state_id,
            path,
        )
    return kept if gone else half


def _command() -> list[str | None]:
    """Names of Meltano's running command and of its parents, the innermost first."""
    import click

    context = click.get_current_context(silent=True)
    names = []
    while context is not None:
        names.append(context.info_name)
        context = context.parent
    return names


def _to_meltano(stored: StoredState) -> MeltanoState:
    return MeltanoState(
        state_id=stored.state_id,
        partial_state=stored.partial_object(),
        completed_state=stored.completed_object(),
    )


def _current_run_id() -> str | None:
    """ID of the run that this process executes: Meltano binds it for its log."""
    from structlog.contextvars import get_contextvars

    run_id = get_contextvars().get("run_id")
    return None if run_id is None else str(run_id)


def _spare_the_traceback(error: PostgresStateError) -> None:
    """End `meltano state set`, `merge` and the like with the message alone, as Meltano ends `list`.

    Meltano wraps any error of a write there, and prints it with three tracebacks. Outside of
    `meltano state` this does nothing.
    """
    if _command()[1:2] == ["state"]:
        from meltano.cli.utils import CliError

        CliError(str(error)).print()
        raise SystemExit(error.exit_code().value)


@contextlib.contextmanager
def _meltano_errors(*, is_reason_alone: bool = False) -> Iterator[None]:
    """Raise our errors as Meltano's. Other errors of the block pass unchanged.

    Args:
        is_reason_alone: whether only the reason is shown, so that it must also say what to do.
    """
    try:
        yield
    except StateStorageError as error:
        kind = PostgresStateError
        if isinstance(error, StateUriError):
            kind = PostgresStateUriError
        elif isinstance(error, StateStorageRefused):
            kind = PostgresStateSettingsError
        elif isinstance(error, StateLocked):
            kind = PostgresStateLockedError
        # Meltano adds the full stops. A cause would only repeat the message.
        reason, solution = error.reason.rstrip("."), error.solution.rstrip(".")
        if is_reason_alone:
            raise kind(f"{reason}. {solution}") from None
        raise kind(reason, solution) from None
