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
            Meltano's own ``lock_timeout_seconds``: a lock that wasn't renewed for this long is
            over; ``lock_retry_seconds``: the longest pause between two attempts at a lock.

    Raises:
        PostgresStateError: from every method, with reason and instruction.
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
        """For Meltano's log: where, without user and password."""
        return f"PostgreSQL ({self.storage.location.shown})"

    def set(self, state: MeltanoState) -> None:
        """Replace both halves. Within `acquire_lock` a failure may show at the end of the block.

        A bookmark of a run that is NaN or Infinity is left out, and a warning names it: its stream
        is read from an earlier point again. To refuse the state would lose all the others.
        """
        partial, completed = (
            _storable(state.state_id, half) for half in (state.partial_state, state.completed_state)
        )
        with _meltano_errors():
            self._warn_of_run(state.state_id)
            self.storage.set(state.state_id, partial=partial, completed=completed)

    def get(self, state_id: str) -> MeltanoState | None:
        """The state, as new objects; empty halves are ``{}``."""
        # Before a run, Meltano logs the reason alone.
        with _meltano_errors(is_reason_alone=_current_run_id() is not None):
            if _current_run_id() is not None and not self._may_write:
                # A run whose state can't be written should fail before it loads anything: when the
                # write fails, Meltano may end the run all the same as if nothing had happened.
                self.storage.require_writable()
                self._may_write = True
            stored = self.storage.get(state_id)
            try:
                return _to_meltano(stored) if stored else None
            except StateCorrupt as error:
                if _command()[:2] != ["list", "state"]:
                    raise
                # It must not keep the others from being listed.
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
        """All states that match, read in one query; without those that are corrupt, with a warning
        for each."""
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
        """No other process writes the state under its lock; what the block does is one transaction.

        Args:
            retry_seconds: a longest pause, like ``lock_retry_seconds``; the shorter counts.

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
            PostgresStateLockedError: another one does, and did for `wait_seconds`; says who.
        """
        with _meltano_errors():
            lease = self.storage.run_lease(
                state_id, wait_seconds=wait_seconds, lease_seconds=lease_seconds
            )
            with lease as held:
                yield held

    def migrate(self) -> None:
        """Make or upgrade the tables; `meltano upgrade` calls it."""
        with _meltano_errors():
            self.storage.migrate()

    def _warn_of_run(self, state_id: str) -> None:
        """A person changes a state whose run writes it again; the run lease says so."""
        if _command()[1:2] != ["state"]:
            return
        for row in self.storage.locks():
            if (row.kind, row.state_id, row.is_expired) == ("run", state_id, False):
                _log.warning(
                    "state %r is run now by %s (host %s, pid %s%s), which will write over this "
                    "change: change it when that run has ended",
                    state_id,
                    row.owner,
                    row.host,
                    row.pid,
                    f", run {row.run_id}" if row.run_id else "",
                )

    def close(self) -> None:
        """Close idle connections. It may be used again, and nothing waits to be written."""
        self.storage.close()


def _storable(state_id: str, half: Any) -> Any:
    """What a run may store of this half; what people write is refused as a whole instead."""
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
    """The names of the command that runs and of those above it, the innermost first."""
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
    """The run that Meltano works at: it binds the ID for its log."""
    from structlog.contextvars import get_contextvars

    run_id = get_contextvars().get("run_id")
    return None if run_id is None else str(run_id)


def _spare_the_traceback(error: PostgresStateError) -> None:
    """End `meltano state set`, `merge` and others as Meltano ends `list`: with the message alone.

    There, whatever a write raises is wrapped in an error that the command line prints with three
    tracebacks. Outside of `meltano state` this does nothing.
    """
    if _command()[1:2] == ["state"]:
        from meltano.cli.utils import CliError

        CliError(str(error)).print()
        raise SystemExit(error.exit_code().value)


@contextlib.contextmanager
def _meltano_errors(*, is_reason_alone: bool = False) -> Iterator[None]:
    """Our errors as Meltano's. Errors of a caller's block pass as they are.

    Args:
        is_reason_alone: whether the reason must say, too, what to do.
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
        # Meltano puts full stops behind them. The cause would only say the same again.
        reason, solution = error.reason.rstrip("."), error.solution.rstrip(".")
        if is_reason_alone:
            raise kind(f"{reason}. {solution}") from None
        raise kind(reason, solution) from None
