"""Which copies the sensor requests, and which it holds back for a while."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from dagster import (
    AssetCheckKey,
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRequest,
    RunsFilter,
)

from etl_dagster.backoff import doubled_s
from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.checks.check_names import LAG_CHECK
from etl_dagster.integrations.dagster.phrases import as_of
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.tables.translator import (
    COPIES_TAG,
    PIPELINE_TAG,
    REQUEST_TAG,
    RUN_TABLE_TAG,
    STATE_ID,
    request_prefix,
)
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.copying.pausing import asked_at, paused_tables
from etl_dagster.runtime.many import many
from etl_dagster.runtime.retry import is_sync_due
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

#: Dagster's own retries of a failed run: only the sensor requests the copy again.
_NO_RETRIES = {"dagster/max_retries": "0"}
_RUNS_LOOKED_AT = 10
#: Each costs Dagster's database a query.
_TABLES_PER_TICK, _TURN_S = 100, 5.0
_ACTIVE = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class DueCopies:
    """What a tick does about the tables that need a copy."""

    requests: Sequence[RunRequest] = ()
    #: By table: why its copy is not requested now.
    waiting: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _FirstLook:
    """What the sensor found when it first saw that a run had ended."""

    run_id: str
    #: By the sensor's own clock, seconds.
    at: float
    #: When a person had last asked for a copy of the table.
    asked_at: float


class EndedRuns:
    """Since when the sensor knows that the last run of a table has ended.

    Dagster keeps the end of a run as the wall clock's time. If that clock is set back, the end lies
    in the future, and neither how long ago it was nor what came after it can be told from it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By ID of the table.
        self._looks: dict[int, _FirstLook] = {}

    def look(self, table_id: int, run_id: str, asked_at: float) -> tuple[float, bool]:
        """How long the end has been known, in seconds, and whether a person has asked since."""
        first = self._looks.get(table_id)
        if first is None or first.run_id != run_id:
            first = self._looks[table_id] = _FirstLook(run_id, self._clock(), asked_at)
        return self._clock() - first.at, asked_at != first.asked_at


def due_copies(
    instance: DagsterInstance,
    resource: EtlResource,
    config: PipelineConfig,
    status: PipelineStatus,
    keys: Mapping[str, AssetKey],
    ended: EndedRuns | None = None,
) -> DueCopies:
    """A run for each table that needs a copy and has none, as many as may run at a time.

    Args:
        ended: what the ticks before know of runs that ended.
    """
    ended = ended or EndedRuns()
    needy = [
        table
        for name, table in status.tables.items()
        if name in keys and table.state not in ("ready", "sync_done")
    ]
    if not needy:
        return DueCopies()
    records = instance.get_run_records(RunsFilter(statuses=_ACTIVE), limit=1000)
    active = [record.dagster_run for record in records]
    busy = {key for run in active for key in _keys_of(run, config.pipeline, keys)}
    ours = set(keys.values())
    room = config.copy_tables.max_table_sync_workers - sum(
        1 for run in active if ours & _keys_of(run, config.pipeline, keys)
    )
    idle = [table for table in needy if keys[table.name] not in busy]
    if not idle or room <= 0:
        return DueCopies()
    with resource.get_store() as store:
        due = _due(store, _next_few(idle))
        paused = paused_tables(store) if due else {}
        asked = asked_at(store) if due else {}
    requests: list[RunRequest] = []
    waiting: dict[str, str] = {}
    for table in due:
        if len(requests) >= room:
            break
        if table.table_id in paused:
            waiting[table.name] = _words_of_paused(table.name, paused[table.table_id])
            continue
        before = _runs_before(instance, table)
        pause = before.pause(
            time.time(), asked.get(table.table_id, 0.0), table, ended, resource.get_timing()
        )
        if pause is not None:
            waiting[table.name] = pause
        else:
            requests.append(_request(config, table, keys[table.name], before))
    return DueCopies(requests, waiting)


def _keys_of(run: DagsterRun, pipeline: str, keys: Mapping[str, AssetKey]) -> Set[AssetKey]:
    """The assets that a run is about: those selected, or those of the tables that it names."""
    if run.tags.get(PIPELINE_TAG) == pipeline and COPIES_TAG in run.tags:
        return {keys[name] for name in json.loads(run.tags[COPIES_TAG]) if name in keys}
    return run.asset_selection or frozenset()


def _next_few(tables: Sequence[TableStatus]) -> Sequence[TableStatus]:
    """As many tables as a tick has time for; if there are more, ticks take turns with them."""
    if len(tables) <= _TABLES_PER_TICK:
        return tables
    turns = -(-len(tables) // _TABLES_PER_TICK)
    turn = int(time.time() / _TURN_S) % turns
    return tables[turn * _TABLES_PER_TICK : (turn + 1) * _TABLES_PER_TICK]


def _due(store: CoordinatingStore, tables: Sequence[TableStatus]) -> list[TableStatus]:
    """The tables that are due by the store, which decides: the status may be seconds old."""
    states = store.get_table_replication_states()
    due = [table for table in tables if is_sync_due(states.get(table.table_id))]
    leased = many(store).leased([f"table:{table.table_id}" for table in due])
    return [table for table in due if f"table:{table.table_id}" not in leased]


@dataclass(frozen=True)
class RunsBefore:
    """The runs that copied a table, or tried to."""

    last_run_id: str | None = None
    #: How many failed or were canceled since the last one that succeeded.
    failures: int = 0
    #: Whether a person canceled the last one. Dagster calls a run that was interrupted failed.
    is_canceled: bool = False
    #: When the last one ended, seconds since 1970-01-01 UTC.
    ended_at: float | None = None

    def pause(
        self,
        now: float,
        asked_at: float,
        table: TableStatus,
        ended: EndedRuns,
        timing: DagsterTiming = DAGSTER_TIMING,
    ) -> str | None:
        """Why the next run waits; None where it may be requested.

        Args:
            now: seconds since 1970-01-01 UTC.
            asked_at: when a person asked for a copy without starting a run, as by a reset.
            ended: bounds the pause, and orders what people asked for, if the clock was set back.
        """
        if not self.failures or self.ended_at is None or self.last_run_id is None:
            return None
        known_s, is_asked_since = ended.look(table.table_id, self.last_run_id, asked_at)
        if is_asked_since or asked_at > self.ended_at:
            return None
        if self.is_canceled:
            return (
                f"A person canceled the copy at {as_of(self.ended_at)}, so the sensor does not "
                "request it again; the source keeps WAL for the table meanwhile. To have it "
                f"copied: materialize the asset, or etl-dagster resume {shlex.quote(table.name)}."
            )
        pause_s = doubled_s(timing.first_pause_s, timing.longest_pause_s, self.failures - 1)
        next_at = min(self.ended_at + pause_s, now + pause_s - known_s)
        if now >= next_at:
            return None
        what = "failed" if self.failures == 1 else f"failed {self.failures} times in a row"
        return (
            f"The copy {what} at {as_of(self.ended_at)}. The sensor requests it again at "
            f"{as_of(next_at)}; materialize the asset to copy the table now."
        )


def _words_of_paused(table: str, since: str) -> str:
    return (
        f"Copies of the table are paused since {since}. To have it copied again by the sensor: "
        f"etl-dagster resume {shlex.quote(table)}; to copy it now, materialize the asset."
    )


def _runs_before(instance: DagsterInstance, table: TableStatus) -> RunsBefore:
    records = instance.get_run_records(
        RunsFilter(tags={STATE_ID: table.state_id}), limit=_RUNS_LOOKED_AT
    )
    if not records:
        return RunsBefore()
    failures = 0
    for record in records:
        if record.dagster_run.status == DagsterRunStatus.SUCCESS:
            break
        failures += 1
    last = records[0]
    return RunsBefore(
        last_run_id=last.dagster_run.run_id,
        failures=failures,
        is_canceled=last.dagster_run.status == DagsterRunStatus.CANCELED,
        # Its other times are in the time zone of Dagster's database.
        ended_at=last.end_time,
    )


def _request(
    config: PipelineConfig, table: TableStatus, key: AssetKey, before: RunsBefore
) -> RunRequest:
    """The run. Its key names the last run, so each copy is requested once, until its run ends."""
    request_id = f"{request_prefix(table.state_id)}{before.last_run_id or 'the first'}"
    tags = {
        PIPELINE_TAG: config.pipeline,
        RUN_TABLE_TAG: table.name,
        STATE_ID: table.state_id,
        REQUEST_TAG: request_id,
    }
    return RunRequest(
        run_key=request_id,
        asset_selection=[key],
        # Only the copy's own check: others may fail for reasons that don't concern the copy.
        asset_check_keys=[AssetCheckKey(key, LAG_CHECK)],
        tags=tags | _NO_RETRIES,
    )
