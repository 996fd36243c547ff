"""The life of a table, from unknown to streamed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias, assert_never

from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Init:
    """Published, and nothing done yet. A reset leads back to this state."""


@dataclass(frozen=True, slots=True)
class DataSync:
    """Being copied; the store knows which chunks are finished."""


@dataclass(frozen=True, slots=True)
class FinishedCopy:
    """Every row of the copy is durable; the changes since the copy began are not yet applied."""


@dataclass(frozen=True, slots=True)
class SyncWait:
    """The table sync worker has caught up to `lsn` and asks the apply worker for a target."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Catchup:
    """The apply worker waits while the table sync worker streams up to the target."""

    target_lsn: Lsn


@dataclass(frozen=True, slots=True)
class SyncDone:
    """The table sync worker applied every commit before `lsn`, at or past its target."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Ready:
    """The apply worker streams the table; it applies commits whose record begins at or after
    `lsn`."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Continues only after a reset."""

    kind: Literal["no_retry"] = field(default="no_retry", init=False)


@dataclass(frozen=True, slots=True)
class ManualRetry:
    """Continues when a person has done what the solution says, and retries the table."""

    kind: Literal["manual_retry"] = field(default="manual_retry", init=False)


@dataclass(frozen=True, slots=True)
class TimedRetry:
    """Continues by itself at `next_retry` (with time zone); `attempt` counts from 1."""

    next_retry: datetime
    attempt: int = 1
    kind: Literal["timed_retry"] = field(default="timed_retry", init=False)


RetryPolicy: TypeAlias = NoRetry | ManualRetry | TimedRetry


@dataclass(frozen=True, slots=True)
class Errored:
    """Stopped; the rows delivered so far stay, the other tables continue."""

    reason: str
    solution: str
    retry: RetryPolicy
    #: When it stopped (with time zone). None: an earlier version of the package stopped it.
    since: datetime | None = None
    #: All changes committed before this LSN are at the destination. None: it was not streamed yet.
    lsn: Lsn | None = None
    #: Whether a slot of the table's own keeps its changes from `lsn` on, so that it can be resumed
    #: without a copy.
    is_kept: bool = False


TableState: TypeAlias = (
    Init | DataSync | FinishedCopy | SyncWait | Catchup | SyncDone | Ready | Errored
)

#: Where a table may go next. The names are Postgres' own (pg_subscription_rel.h) where it has
#: them. From anywhere a table may also become `Errored` or be reset to `Init`.
TRANSITIONS: dict[type[TableState], frozenset[type[TableState]]] = {
    Init: frozenset({DataSync}),
    DataSync: frozenset({DataSync, FinishedCopy}),
    FinishedCopy: frozenset({FinishedCopy, SyncWait, DataSync}),
    # After a worker has died while waiting, the next one begins again at FinishedCopy, or with a
    # new copy if the slot is lost; the apply worker withdraws a target that isn't reached in time.
    SyncWait: frozenset({Catchup, FinishedCopy, DataSync}),
    Catchup: frozenset({SyncDone, SyncWait, FinishedCopy, DataSync}),
    SyncDone: frozenset({Ready}),
    Ready: frozenset(),
    Errored: frozenset({DataSync, FinishedCopy}),
}


def check_transition(old: TableState | None, new: TableState) -> None:
    """Refuse a change of state that `TRANSITIONS` doesn't have.

    Raises:
        InvalidState: there is no such transition.
    """
    if isinstance(new, Errored | Init) or old is None:
        return
    if type(new) not in TRANSITIONS[type(old)]:
        raise InvalidState(
            f"a table can't go from {state_name(old)} to {state_name(new)}",
            solution="Two workers may be at this table at once; restart the pipeline.",
        )


def is_durable(state: TableState) -> bool:
    """Whether a restart resumes from this state; if not, it resumes from the last one that is."""
    match state:
        case SyncWait() | Catchup():
            return False
        case Init() | DataSync() | FinishedCopy() | SyncDone() | Ready() | Errored():
            return True
    assert_never(state)


def needs_sync(state: TableState) -> bool:
    """Whether a table sync worker has something to do (an errored table waits for its retry)."""
    match state:
        case Init() | DataSync() | FinishedCopy() | SyncWait() | Catchup():
            return True
        case SyncDone() | Ready() | Errored():
            return False
    assert_never(state)


_NAMES: dict[type[TableState], str] = {
    Init: "init",
    DataSync: "data_sync",
    FinishedCopy: "finished_copy",
    SyncWait: "sync_wait",
    Catchup: "catchup",
    SyncDone: "sync_done",
    Ready: "ready",
    Errored: "errored",
}


def state_name(state: TableState) -> str:
    """The state's name as stores and people write it: ``data_sync``, ``ready`` ..."""
    return _NAMES[type(state)]


def state_to_json(state: TableState) -> dict[str, Any]:
    """The state as plain JSON values; `state_from_json` is the way back."""
    payload: dict[str, Any] = {"type": state_name(state)}
    match state:
        case SyncWait(lsn) | SyncDone(lsn) | Ready(lsn) | Catchup(lsn):
            payload["lsn"] = str(lsn)
        case Errored(reason, solution, retry, since, lsn, is_kept):
            payload |= {"reason": reason, "solution": solution, "retry": {"kind": retry.kind}}
            if isinstance(retry, TimedRetry):
                payload["retry"] |= {
                    "next_retry": retry.next_retry.isoformat(),
                    "attempt": retry.attempt,
                }
            # Left out if there is no value, as in earlier versions.
            if since is not None:
                payload["since"] = since.isoformat()
            if lsn is not None:
                payload["lsn"] = str(lsn)
            if is_kept:
                payload["is_kept"] = True
        case Init() | DataSync() | FinishedCopy():
            pass
        case _:
            assert_never(state)
    return payload


def state_from_json(payload: dict[str, Any]) -> TableState:
    """Read what `state_to_json` wrote.

    Raises:
        InvalidState: the payload names no state.
    """
    match payload.get("type"):
        case "init":
            return Init()
        case "data_sync":
            return DataSync()
        case "finished_copy":
            return FinishedCopy()
        case "sync_wait":
            return SyncWait(Lsn.parse(payload["lsn"]))
        case "catchup":
            return Catchup(Lsn.parse(payload["lsn"]))
        case "sync_done":
            return SyncDone(Lsn.parse(payload["lsn"]))
        case "ready":
            return Ready(Lsn.parse(payload["lsn"]))
        case "errored":
            return _errored(payload)
    raise InvalidState(f"{payload.get('type')!r} is not the name of a table state")


def _errored(payload: dict[str, Any]) -> Errored:
    since, lsn = payload.get("since"), payload.get("lsn")
    return Errored(
        payload["reason"],
        payload["solution"],
        _retry(payload["retry"]),
        None if since is None else datetime.fromisoformat(since),
        None if lsn is None else Lsn.parse(lsn),
        payload.get("is_kept", False),
    )


def _retry(payload: dict[str, Any]) -> RetryPolicy:
    match payload["kind"]:
        case "timed_retry":
            moment = datetime.fromisoformat(payload["next_retry"])
            return TimedRetry(moment, payload.get("attempt", 1))
        case "manual_retry":
            return ManualRetry()
        case _:
            return NoRetry()
