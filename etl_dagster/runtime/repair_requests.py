"""Which tables are to be compared and repaired in place of a copy, and what became of it.

A request is a note of the state store, and so is an outcome. Only who asks writes the one, and only
the table's worker the other: a request counts until there is an outcome of it. Where a request was
withdrawn, the table is copied as a whole, which is exact, too.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.coordination import Notes
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, TimedRetry
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.exclusive import changing_alone

_REQUESTS: Final = "repairs"
_POLL_S: Final = 0.2
#: Follows on "copied as a whole, since".
_WITHDRAWN: Final = "the request was withdrawn, as by a reset"

#: A person's or a job's request for a table, or the start after a lost slot for all of them.
Why: TypeAlias = Literal["asked", "lost slot"]


@dataclass(frozen=True, slots=True)
class RangeDifference:
    """How many rows differ in one range of keys; see `comparing.sums.Verdict`."""

    #: From 0 up to `comparing.sums.RANGES`.
    number: int
    missing: int = 0
    extra: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """What was asked for."""

    request_id: str
    why: Why


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """What became of the repair of one table."""

    request_id: str
    #: `ranges`: rows were replaced, or none differed. `copy`: the table is copied as a whole.
    by: Literal["ranges", "copy"]
    #: Why it is copied.
    reason: str | None = None
    #: The position that the rows were replaced at.
    lsn: Lsn = LSN_ZERO
    source_rows: int = 0
    destination_rows: int = 0
    #: As in `sums.Verdict`.
    missing: int = 0
    extra: int = 0
    changed: int = 0
    ranges: tuple[RangeDifference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names of the fields; `lsn` as Postgres prints it."""
        return asdict(self) | {"lsn": str(self.lsn)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> RepairOutcome:
        ranges = tuple(RangeDifference(**each) for each in payload["ranges"])
        return cls(**{**payload, "lsn": Lsn.parse(payload["lsn"]), "ranges": ranges})


def request_repairs(
    store: CoordinatingStore, table_ids: Sequence[TableId], why: Why = "asked"
) -> Mapping[TableId, str]:
    """Have these tables compared and repaired by their workers, as `request_copy` has them copied.

    Returns:
        The ID of each request, for `repair_outcome`.
    """
    requests = note_repairs(store, table_ids, why)
    for table_id in table_ids:
        store.request_copy(table_id)
    return requests


def note_repairs(
    store: CoordinatingStore, table_ids: Sequence[TableId], why: Why
) -> Mapping[TableId, str]:
    """Have the next copies of these tables be repairs."""
    requests = {table_id: str(uuid.uuid4()) for table_id in table_ids}
    noted = {str(t): {"id": request, "why": why} for t, request in requests.items()}
    with _alone(store):
        store.put_note(_REQUESTS, dict(store.get_note(_REQUESTS) or {}) | noted)
    return requests


def forget_repairs(store: CoordinatingStore, table_ids: Collection[TableId] | None = None) -> None:
    """Have the next copies of these tables, or of all, be copies of the whole."""
    with _alone(store):
        noted = dict(store.get_note(_REQUESTS) or {})
        gone = noted.keys() if table_ids is None else {str(table_id) for table_id in table_ids}
        if gone & noted.keys():
            store.put_note(_REQUESTS, {key: each for key, each in noted.items() if key not in gone})


def _alone(store: CoordinatingStore) -> AbstractContextManager[None]:
    return changing_alone(store, _REQUESTS, "which tables are to be repaired")


def wanted_repairs(store: Notes, table_ids: Collection[TableId]) -> Mapping[TableId, RepairRequest]:
    """The requests for these tables that have no outcome yet."""
    noted = store.get_note(_REQUESTS) or {}
    wanted = {}
    for table_id in table_ids:
        each = noted.get(str(table_id))
        if each is not None and repair_outcome(store, table_id, each["id"]) is None:
            wanted[table_id] = RepairRequest(each["id"], each["why"])
    return wanted


def keep_outcome(store: Notes, table_id: TableId, outcome: RepairOutcome) -> None:
    """Answer a request."""
    store.put_note(_outcome_key(table_id), outcome.to_json())


def repair_outcome(store: Notes, table_id: TableId, request_id: str) -> RepairOutcome | None:
    """What became of a request; None while nothing has."""
    payload = store.get_note(_outcome_key(table_id))
    if payload is None or payload.get("request_id") != request_id:
        return None
    return RepairOutcome.from_json(payload)


def await_repairs(
    store: CoordinatingStore,
    requests: Mapping[TableId, str],
    *,
    stop: threading.Event | None = None,
    clock: Clock = SYSTEM_CLOCK,
    on_look: Callable[[], None] = lambda: None,
    on_failed: Callable[[TableId, EtlError], None] | None = None,
) -> Mapping[TableId, RepairOutcome]:
    """Wait until each request has its outcome; a table that is copied may not be streamed yet.

    A later request for the same table takes the place of an earlier one, and its outcome is that of
    both. A request that was withdrawn, as by a reset, ends in a copy of the whole table.

    Args:
        requests: as `request_repairs` returned them.
        on_look: called a few times a second, with the tables' states loaded.
        on_failed: called with each table that has failed; the others are waited for.

    Raises:
        InvalidState: a table has failed and there is no `on_failed`, or no process runs the
            pipeline.
        Stopped: told to stop.
    """
    stop = stop or threading.Event()
    wanted = dict(requests)
    outcomes: dict[TableId, RepairOutcome] = {}
    failed: set[TableId] = set()
    while True:
        noted = store.get_note(_REQUESTS) or {}
        for table_id in requests.keys() - outcomes.keys() - failed:
            outcome = repair_outcome(store, table_id, wanted[table_id])
            if outcome is not None:
                outcomes[table_id] = outcome
            elif (request := noted.get(str(table_id))) is not None:
                wanted[table_id] = request["id"]
            else:
                outcomes[table_id] = RepairOutcome(wanted[table_id], "copy", reason=_WITHDRAWN)
        left = requests.keys() - outcomes.keys() - failed
        if not left:
            return outcomes
        store.load_table_replication_states()
        on_look()
        for table_id in left:
            state = store.get_table_replication_state(table_id)
            if isinstance(state, Errored) and not isinstance(state.retry, TimedRetry):
                error = InvalidState(f"the repair failed: {state.reason}", solution=state.solution)
                if on_failed is None:
                    raise error
                failed.add(table_id)
                on_failed(table_id, error)
        if left <= failed:
            continue
        if not store.is_leased("apply"):
            raise InvalidState(
                "the repair was asked for, and no process runs the pipeline",
                solution="Start it; it repairs the tables then.",
            )
        if clock.wait(stop, _POLL_S):
            raise Stopped


def _outcome_key(table_id: TableId) -> str:
    return f"repaired {table_id}"
