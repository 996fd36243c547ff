"""When the sensor requests a copy again, and what a run with an old request does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetSpec,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    Failure,
    MaterializeResult,
    instance_for_test,
)
from dagster._core.scheduler.instigation import InstigatorStatus

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import DestinationError
from etl_dagster.integrations.dagster.assets.copy_job import _Step
from etl_dagster.integrations.dagster.between_ticks import keep_status, kept_status
from etl_dagster.integrations.dagster.copies import table_asset as assets
from etl_dagster.integrations.dagster.copies.presence import (
    ReplicatorAbsent,
    ReplicatorWatch,
    is_sensor_on,
)
from etl_dagster.integrations.dagster.copies.step_copy import is_asked_for_by_person
from etl_dagster.integrations.dagster.copies.table_asset import copy_pool
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.requests import DueCopies, EndedRuns, due_copies
from etl_dagster.integrations.dagster.tables.translator import (
    COPIES_TAG,
    PIPELINE_TAG,
    REQUEST_TAG,
    STATE_ID,
    TABLE_TAG,
)
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.model.destination import Destination
from etl_dagster.model.states import Init
from etl_dagster.model.stores import CoordinatingStore, DestinationStore
from etl_dagster.runtime.copying.pausing import ask_for_copies, pause_copies, resume_copies
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.stores.memory import MemoryStore
from tests.support.waiting import PATIENCE_S, wait_until

KEY = AssetKey(["shop", "public", "orders"])
TABLE = TableStatus(1, "public.orders", "init", "dev:shop-to-duckdb:public.orders")


def a_config() -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"database": "shop", "publication": "p"},
            "destination": {"type": "duckdb", "path": "x.duckdb"},
        },
        {},
    )


class Resource:
    """A pipeline whose table waits for its copy."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.update_table_replication_states([(1, Init())])

    def get_store(self) -> Any:
        import contextlib

        return contextlib.nullcontext(self.store)

    def get_timing(self) -> DagsterTiming:
        return DAGSTER_TIMING


class Instance:
    """What the sensor asks of Dagster's database: the runs, newest first."""

    def __init__(self, *runs: tuple[DagsterRunStatus, float | None], offset_h: float = 0) -> None:
        now = time.time()
        self.records = [
            SimpleNamespace(
                dagster_run=SimpleNamespace(
                    run_id=f"run {number}", status=status, asset_selection={KEY}, tags={}
                ),
                end_time=None if ended_s_ago is None else now - ended_s_ago,
                # The database's own clock, in its own time zone, without saying which.
                update_timestamp=datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=offset_h),
            )
            for number, (status, ended_s_ago) in enumerate(runs)
        ]

    def get_run_records(self, filters: Any, limit: int) -> list[Any]:
        if filters.statuses:
            return [r for r in self.records if r.dagster_run.status in filters.statuses]
        assert filters.tags == {"meltano/state_id": TABLE.state_id}
        return self.records


def due(
    instance: Instance, resource: Resource | None = None, *, ended: EndedRuns | None = None
) -> DueCopies:
    status = PipelineStatus("shop", "duckdb", "streaming", tables={TABLE.name: TABLE})
    return due_copies(
        cast(DagsterInstance, instance),
        cast(EtlResource, resource or Resource()),
        a_config(),
        status,
        {TABLE.name: KEY},
        ended,
    )


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    os.environ.pop("TZ", None)
    time.tzset()


FAILED, CANCELED = DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED


@pytest.mark.parametrize("offset_h", [-8, 0, 9], ids=lambda hours: f"database at {hours:+} h")
def test_the_pause_after_a_failure_is_the_same_in_every_time_zone(
    time_zone: str, offset_h: int
) -> None:
    held = due(Instance((FAILED, 5.0), offset_h=offset_h))
    assert not held.requests
    assert "The copy failed at" in held.waiting[TABLE.name]
    (request,) = due(Instance((FAILED, 20.0), offset_h=offset_h)).requests
    assert request.tags[REQUEST_TAG] == request.run_key


def test_the_pause_doubles_with_each_failure_in_a_row() -> None:
    held = due(Instance((FAILED, 50.0), (FAILED, 90.0), (FAILED, 120.0)))
    assert "failed 3 times in a row" in held.waiting[TABLE.name]
    assert due(Instance((FAILED, 61.0), (FAILED, 90.0), (FAILED, 120.0))).requests


def test_a_canceled_copy_stays_canceled_until_a_person_asks_for_it_again() -> None:
    resource, a_year_ago = Resource(), Instance((CANCELED, 365 * 86_400.0), (FAILED, 4e7))
    held = due(a_year_ago, resource)
    assert not held.requests
    assert "A person canceled the copy at" in held.waiting[TABLE.name]
    assert "etl-dagster resume public.orders" in held.waiting[TABLE.name]

    assert resume_copies(resource.store, [1]) == set()
    assert due(a_year_ago, resource).requests


def test_a_request_before_the_cancellation_does_not_undo_it() -> None:
    resource = Resource()
    ask_for_copies(resource.store, [1])
    assert not due(Instance((CANCELED, -1.0)), resource).requests


AN_HOUR_AHEAD = -3600.0


def test_a_clock_that_was_set_back_makes_no_pause_longer() -> None:
    """The end of the run then lies an hour in the future."""
    now = 0.0
    ended = EndedRuns(clock=lambda: now)
    failed = Instance((FAILED, AN_HOUR_AHEAD))
    assert due(failed, ended=ended).waiting
    now = 14.0
    assert due(failed, ended=ended).waiting
    now = 15.0
    assert due(failed, ended=ended).requests
    # The next failure has a pause of its own.
    failed_again = Instance((FAILED, AN_HOUR_AHEAD - 20), (FAILED, AN_HOUR_AHEAD))
    failed_again.records[0].dagster_run.run_id = "next"
    assert due(failed_again, ended=ended).waiting
    now = 45.0
    assert due(failed_again, ended=ended).requests


def test_a_person_can_ask_for_a_canceled_copy_after_the_clock_was_set_back() -> None:
    resource, ended = Resource(), EndedRuns()
    ask_for_copies(resource.store, [1])
    canceled = Instance((CANCELED, AN_HOUR_AHEAD))
    assert due(canceled, resource, ended=ended).waiting

    resume_copies(resource.store, [1])
    assert due(canceled, resource, ended=ended).requests


def test_the_status_between_two_ticks_does_not_count_for_an_hour_longer() -> None:
    store, status = MemoryStore(), PipelineStatus("shop", "duckdb", "stopped")
    keep_status(store, status, next_within_s=80.0, clock=lambda: 10_000.0)

    def is_on(now: float) -> bool:
        return kept_status(store, clock=lambda: now) is not None

    assert is_on(10_079.0)
    assert not is_on(10_081.0)
    # Two machines' clocks differ a little.
    assert is_on(9_990.0)
    assert not is_on(10_000.0 - 3600)


def test_a_table_that_is_paused_is_not_requested_until_it_is_resumed() -> None:
    resource = Resource()
    pause_copies(resource.store, [1])
    held = due(Instance(), resource)
    assert not held.requests
    assert "Copies of the table are paused since" in held.waiting[TABLE.name]
    assert "etl-dagster resume public.orders" in held.waiting[TABLE.name]
    assert resume_copies(resource.store, [1, 2]) == {1}
    assert due(Instance(), resource).requests


def test_a_copy_that_runs_is_not_requested() -> None:
    found = due(Instance((DagsterRunStatus.STARTED, None)))
    assert not found.requests
    assert not found.waiting


def test_a_copy_that_several_steps_make_is_not_requested() -> None:
    """Such a run has no assets selected, but names its tables."""
    instance = Instance((DagsterRunStatus.STARTED, None))
    run = instance.records[0].dagster_run
    run.asset_selection = None
    assert due(instance).requests

    run.tags = {PIPELINE_TAG: "shop", COPIES_TAG: '["public.orders", "public.other"]'}
    assert not due(instance).requests

    run.tags[PIPELINE_TAG] = "another"
    assert due(instance).requests


def test_only_the_sensor_repeats_the_runs_that_it_requested() -> None:
    """Dagster's own retries of a failed run would be a second owner of the copy."""
    (request,) = due(Instance()).requests
    assert request.tags["dagster/max_retries"] == "0"


class Run:
    """The part of a step's context that shows who requested the run."""

    def __init__(
        self,
        tags: dict[str, str],
        done: tuple[str, ...] = (),
        parent: dict[str, str] | None = None,
    ) -> None:
        self.run = SimpleNamespace(run_id="this", tags=tags)
        self.instance = self
        self._done = done
        self._parent = None if parent is None else SimpleNamespace(run_id="p", tags=parent)

    def get_run_by_id(self, run_id: str) -> Any:
        assert run_id == "p"
        return self._parent

    def get_runs(self, filters: Any) -> list[Any]:
        assert filters.statuses == [DagsterRunStatus.SUCCESS]
        assert filters.tags == {REQUEST_TAG: REQUEST}
        return [SimpleNamespace(run_id=run_id) for run_id in self._done]


REQUEST = "dev:shop after the first"
SENSOR = {REQUEST_TAG: REQUEST, STATE_ID: "dev:shop", "dagster/sensor_name": "shop_replication"}

#: Of a run by which Dagster retries another one.
RETRY = {"dagster/parent_run_id": "p", "dagster/retry_number": "1"}


@pytest.mark.parametrize(
    ("run", "is_asked"),
    [
        (Run({}), True),
        (Run({REQUEST_TAG: "nightly", STATE_ID: "dev:shop"}), True),
        (Run(SENSOR), False),
        (Run(SENSOR, done=("this",)), False),
        (Run(SENSOR, done=("the first",)), True),
        (Run(SENSOR | {"dagster/parent_run_id": "p"}), True),
        (Run(SENSOR | RETRY, parent=SENSOR), False),
        (Run(RETRY, parent={}), True),
        (Run(RETRY), False),
    ],
    ids=[
        "click",
        "other sensor",
        "request",
        "itself",
        "same request",
        "re-execution",
        "retry",
        "retry of click",
        "retry of a run that was deleted",
    ],
)
def test_a_run_copies_a_streamed_table_again_if_a_person_asked_for_it(
    run: Run, is_asked: bool
) -> None:
    """A run that is executed again inherits every tag of the sensor's request."""
    assert is_asked_for_by_person(cast(AssetExecutionContext, run)) is is_asked


class Times:
    """A clock that `sleep` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def a_watch(
    store: MemoryStore, times: Times, *, is_sensor_on: Callable[[], bool] = lambda: False
) -> ReplicatorWatch:
    return ReplicatorWatch(
        store, "shop", clock=lambda: times.now, sleep=times.sleep, is_sensor_on=is_sensor_on
    )


def test_without_a_replicator_a_copy_does_not_begin() -> None:
    times, waits = Times(), list[float]()
    with pytest.raises(ReplicatorAbsent) as refused:
        a_watch(MemoryStore(), times).require(waits.append)
    assert times.now < 20
    assert len(waits) == 1
    assert "no replicator streams the pipeline 'shop'" in refused.value.reason
    assert "Turn on the sensor shop_replication" in refused.value.solution


def test_a_copy_ends_soon_after_its_replicator_but_survives_a_moment_without_one() -> None:
    store, times = MemoryStore(), Times()
    lease = store.acquire_lease("apply")
    assert lease is not None
    watch = a_watch(store, times)
    watch.require(lambda wait_s: pytest.fail("there is one"))
    times.now = 1000.0
    watch.check()
    lease.release()
    times.now = 1020.0
    watch.check()
    lease = store.acquire_lease("apply")
    assert lease is not None
    times.now = 1040.0
    watch.check()
    lease.release()
    times.now = 1060.0
    watch.check()
    times.now = 1075.0
    with pytest.raises(ReplicatorAbsent, match="what is copied stays"):
        watch.check()


def test_a_replicator_that_its_sensor_is_starting_is_waited_for() -> None:
    """On a busy machine a tick and the start of a process take a minute."""
    store, times = MemoryStore(), Times()
    watch = a_watch(store, times, is_sensor_on=lambda: True)
    with pytest.raises(ReplicatorAbsent, match="though the sensor shop_replication is on"):
        watch.require(lambda wait_s: None)
    assert times.now > 120
    lease = store.acquire_lease("apply")
    assert lease is not None
    watch.require(lambda wait_s: pytest.fail("there is one"))
    lease.release()
    for _ in range(10):
        times.now += 15.0
        watch.check()
    times.now += 60.0
    with pytest.raises(ReplicatorAbsent) as refused:
        watch.check()
    assert "Dagster's daemon" in refused.value.solution


def test_a_sensor_is_on_when_a_person_or_the_code_has_turned_it_on() -> None:
    def state(name: str, status: InstigatorStatus) -> Any:
        return SimpleNamespace(instigator_name=name, status=status)

    def is_on(*states: Any) -> bool:
        instance = SimpleNamespace(all_instigator_state=lambda: states)
        return is_sensor_on(cast(DagsterInstance, instance), "shop")

    assert not is_on()
    assert not is_on(state("shop_replication", InstigatorStatus.STOPPED))
    assert not is_on(state("crm_replication", InstigatorStatus.RUNNING))
    assert is_on(state("shop_replication", InstigatorStatus.RUNNING))
    assert is_on(state("shop_replication", InstigatorStatus.DECLARED_IN_CODE))


class Parts:
    """What a step needs of a pipeline's resource before it copies."""

    def __init__(self, destination: MemoryDestination) -> None:
        self.store = MemoryStore()
        self.destination = destination

    def load_config(self) -> PipelineConfig:
        return a_config()

    def get_store(self) -> AbstractContextManager[CoordinatingStore]:
        return nullcontext(self.store)

    def get_destination(self) -> Destination:
        return self.destination

    def get_timing(self) -> DagsterTiming:
        return DagsterTiming(replicator_at_start_s=0.0)


def a_step(*tables: str) -> tuple[AssetExecutionContext, list[str]]:
    """The context of a step that a person started for these tables, and what it logs."""
    lines: list[str] = []
    specs = [AssetSpec(table.split("."), metadata={TABLE_TAG: table}) for table in tables]
    context = SimpleNamespace(
        assets_def=SimpleNamespace(specs=specs),
        selected_asset_keys={spec.key for spec in specs},
        run=SimpleNamespace(run_id="this", tags={}),
        retry_number=0,
        instance=SimpleNamespace(all_instigator_state=list),
        log=SimpleNamespace(info=lines.append, warning=lines.append, error=lines.append),
    )
    return cast(AssetExecutionContext, context), lines


def test_of_several_tables_without_a_replicator_one_waits_and_the_others_are_left_out() -> None:
    """With a hundred tables, the run would wait for hours."""
    context, lines = a_step("public.orders", "public.people", "public.items")

    with pytest.raises(Failure, match="no replicator streams"):
        list(assets.copy_selected_tables(context, Parts(MemoryDestination())))

    assert [line.partition(":")[0] for line in lines] == ["public.orders"]


class Unwilling(MemoryDestination):
    """A destination that opens, and then can't be written."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False

    def startup(self, store: DestinationStore) -> None:
        self.is_open = True
        raise DestinationError("the disk is full")

    def shutdown(self) -> None:
        self.is_open = False


def test_a_destination_whose_start_fails_is_released() -> None:
    """Its next try is in the same process, which may hold a lock on the file."""
    context, _ = a_step("public.orders")
    destination = Unwilling()
    parts = Parts(destination)
    lease = parts.store.acquire_lease("apply")
    assert lease is not None

    with pytest.raises(Failure, match="the disk is full"):
        list(assets.copy_selected_tables(context, parts))
    assert not destination.is_open

    step = _Step(a_config(), parts.store, destination, cast(Any, None))
    with pytest.raises(DestinationError), step.started():
        pytest.fail("it has not started")
    assert not destination.is_open
    lease.release()


def test_each_pipeline_has_a_pool_of_its_own() -> None:
    assert copy_pool("shop") != copy_pool("crm")


def test_copies_of_two_code_locations_share_the_limit_of_their_pipelines_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As during a rolling update: the source must not be read by twice as many as allowed."""
    copied: list[str] = []

    def copy(_: object, resource: object, table: str, key: AssetKey) -> MaterializeResult[Any]:
        copied.append(table)
        return MaterializeResult(asset_key=key)

    monkeypatch.setattr(assets, "copy_one_table", copy)
    spec = AssetSpec(KEY, metadata={TABLE_TAG: "public.orders"})
    asset = assets.build_table_asset(spec, "public.orders", "shop")
    job = Definitions(assets=[asset], resources={"shop": 1}).resolve_implicit_global_asset_job_def()
    pools = {"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}}
    with instance_for_test(pools) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default(copy_pool("shop"))
        # What a run of the other code location does before it copies.
        storage.claim_concurrency_slot(copy_pool("shop"), "of the other location", "copy")
        run = Thread(target=partial(job.execute_in_process, instance=instance))
        run.start()
        wait_until(lambda: waiting(instance) == 1)
        assert copied == []
        storage.free_concurrency_slots_for_run("of the other location")
        run.join(PATIENCE_S)
    assert copied == ["public.orders"]


def waiting(instance: DagsterInstance) -> int:
    """How many steps wait for the pool."""
    info = instance.event_log_storage.get_concurrency_info(copy_pool("shop"))
    return sum(step.assigned_timestamp is None for step in info.pending_steps)
