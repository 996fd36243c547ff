"""The checks of a pipeline as a whole: what they say, and when the sensor sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey

from etl_dagster.config import PipelineConfig, ShardConfig
from etl_dagster.errors import EtlError, SlotMissing, SourceUnreachable
from etl_dagster.integrations.dagster.checks.all_shards import asking_shards
from etl_dagster.integrations.dagster.checks.check_names import (
    LAG,
    PIPELINE_CHECKS,
    SLOT,
    STATE,
    WAL,
)
from etl_dagster.integrations.dagster.checks.lag import dead
from etl_dagster.integrations.dagster.checks.pipeline_asset import PipelineChecks
from etl_dagster.integrations.dagster.checks.pipeline_checks import (
    judge_pipeline,
    judge_stopped,
    slot_health,
    state_matches_slot,
    wal_retained,
)
from etl_dagster.integrations.dagster.checks.slot_look import SlotLook, look_at_slots
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.pipeline_reports import PipelineReports
from etl_dagster.integrations.dagster.thresholds import CheckThresholds
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.source import control
from etl_dagster.source.retained_wal import RetainedWal
from etl_dagster.source.slots import (
    Slot,
    fetch_apply_slot,
    fetch_copying_slots,
    fetch_table_sync_slots,
)
from etl_dagster.stores.memory import MemoryStore

MIB = 1024**2
NAME = "etl_dagster_apply_shop"
KEY = AssetKey(["etl_dagster", "shop"])
DEFAULTS = CheckThresholds()
DEAD = dead("no replicator runs", "Turn on the sensor.")
CONFIG = PipelineConfig(
    pipeline="shop", source={"dsn": "postgresql://nowhere/shop", "publication": "etl_pub"}
)
HEALTHY = Slot(
    name=NAME,
    plugin="pgoutput",
    database="shop",
    active=True,
    active_pid=7,
    wal_status="reserved",
    restart_lsn=Lsn(900),
    confirmed_flush_lsn=Lsn(1000),
    retained_bytes=MIB,
)


def look(slot: Slot | None = HEALTHY, **more: Any) -> SlotLook:
    wal = None if slot is None else RetainedWal(NAME, slot.retained_bytes, 100 * MIB, None)
    values = {"wal": wal, "progress": Lsn(1000), "is_run": True} | more
    return SlotLook(NAME, slot, **values)


def status(**more: Any) -> PipelineStatus:
    return replace(PipelineStatus("shop", "duckdb", "streaming", at=1000.0), **more)


def told(found: Finding) -> str:
    return "passes" if found.passed else "fails" if found.is_severe else "warns"


# -- what they say ---------------------------------------------------------------------------------


def test_all_pass_while_the_stream_is_in_step() -> None:
    found = judge_pipeline(status(), None, look(), DEFAULTS)

    assert {name: told(each) for name, each in found.items()} == dict.fromkeys(
        [LAG, WAL, SLOT, STATE], "passes"
    )


@pytest.mark.parametrize(
    ("lag_s", "outcome"), [(300.0, "passes"), (301.0, "warns"), (3600.0, "warns"), (3601, "fails")]
)
def test_lag_warns_past_one_bound_and_fails_past_the_other(lag_s: float, outcome: str) -> None:
    found = judge_pipeline(status(lag_seconds=lag_s), None, look(), DEFAULTS)

    assert told(found[LAG]) == outcome
    assert found[LAG].facts["lag_seconds"] == lag_s


@pytest.mark.parametrize(
    ("kept", "limit", "thresholds", "outcome"),
    [
        (100, None, DEFAULTS, "passes"),
        (101, None, DEFAULTS, "warns"),
        (200, None, DEFAULTS, "warns"),
        (201, None, DEFAULTS, "fails"),
        # A slot is lost past the server's limit: the error comes before.
        (136, 150, DEFAULTS, "fails"),
        (50, None, CheckThresholds(wal_warn_bytes=40 * MIB), "warns"),
        (201, None, CheckThresholds(wal_error_bytes=300 * MIB), "warns"),
    ],
)
def test_retained_wal_is_compared_with_its_own_bounds_and_the_servers(
    kept: int, limit: int | None, thresholds: CheckThresholds, outcome: str
) -> None:
    limit_bytes = None if limit is None else limit * MIB
    wal = RetainedWal(NAME, kept * MIB, 100 * MIB, limit_bytes)
    found = wal_retained(look(wal=wal), thresholds)

    assert told(found) == outcome
    assert found.facts["retained_wal_bytes"] == kept * MIB


LOST = replace(HEALTHY, wal_status="lost", active=False)


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        (look(), "passes", "is reserved"),
        (look(LOST), "fails", "is lost"),
        (look(replace(HEALTHY, is_of_this_database=False)), "fails", "another"),
        (look(replace(HEALTHY, wal_status="unreserved")), "fails", "about to be lost"),
        (look(None, problem=SlotMissing("slot is gone")), "fails", "slot is gone"),
        (look(None), "warns", "There is no slot"),
        (look(replace(HEALTHY, active=False)), "warns", "does not read"),
        # Between two ticks that stream, the slot is not read.
        (look(replace(HEALTHY, active=False), is_run=False), "passes", "is reserved"),
        (look(copying=(replace(LOST, name="a copy's"),)), "warns", "a copy's"),
        (look(wants_failover=True), "warns", "source.failover"),
    ],
)
def test_the_slot_is_healthy_if_it_can_be_read_and_is(
    seen: SlotLook, outcome: str, words: str
) -> None:
    found = slot_health(seen, is_streaming=True)

    assert (told(found), words in found.words) == (outcome, True), found.words


@pytest.mark.parametrize(
    ("seen", "thresholds", "outcome"),
    [
        (look(), DEFAULTS, "passes"),
        (look(progress=Lsn(1000 + 64 * MIB)), DEFAULTS, "passes"),
        (look(progress=Lsn(1001 + 64 * MIB)), DEFAULTS, "warns"),
        (
            look(progress=Lsn(1001 + 90 * MIB)),
            CheckThresholds(slot_behind_error_bytes=90 * MIB),
            "fails",
        ),
        (look(problem=SlotMissing("the slot is past what is durable")), DEFAULTS, "fails"),
        (look(progress=None), DEFAULTS, "warns"),
        (look(leftover=("etl_dagster_sync_shop_7",)), DEFAULTS, "warns"),
    ],
)
def test_the_state_matches_a_slot_from_which_the_stream_can_resume_exactly(
    seen: SlotLook, thresholds: CheckThresholds, outcome: str
) -> None:
    assert told(state_matches_slot(seen, thresholds)) == outcome


def test_nothing_passes_while_nothing_streams_and_a_lost_slot_is_still_named() -> None:
    found = judge_pipeline(status(), DEAD, look(LOST), DEFAULTS)

    assert {told(each) for each in found.values()} == {"fails"}
    assert "no replicator runs" in found[LAG].words
    assert found[SLOT].words.startswith("slot 'etl_dagster_apply_shop' is lost")
    assert found[STATE].facts["confirmed_lsn"] == "0/3E8"


def test_a_source_that_cannot_be_asked_does_not_pass_the_check() -> None:
    found = judge_pipeline(status(), None, SourceUnreachable("no server answers"), DEFAULTS)

    assert {name: told(each) for name, each in found.items()} == {
        LAG: "passes",
        WAL: "warns",
        SLOT: "warns",
        STATE: "warns",
    }


def test_a_bound_to_warn_is_not_past_the_one_to_fail() -> None:
    with pytest.raises(ValueError, match=r"lag_warn_s \(9\) is more than lag_error_s \(5\)"):
        CheckThresholds(lag_warn_s=9, lag_error_s=5)


class Asked:
    """A source with the catalog that the test gives it."""

    def __init__(self, answers: dict[Any, Any]) -> None:
        self.answers = answers

    def ask(self, what: str, question: Any, *_: Any) -> Any:
        return self.answers[question]

    def close(self) -> None:
        """It has no connection."""


@pytest.mark.parametrize(("is_run", "outcome"), [(True, "warns"), (False, "passes")])
def test_a_slot_that_is_not_read_is_a_fault_only_while_a_process_has_the_lease(
    monkeypatch: pytest.MonkeyPatch, is_run: bool, outcome: str
) -> None:
    idle = replace(HEALTHY, active=False)
    answers = {fetch_apply_slot: idle, fetch_copying_slots: [], fetch_table_sync_slots: {}}
    monkeypatch.setattr(control, "SourceControl", lambda *_, **__: Asked(answers))
    store = MemoryStore()
    lease = store.acquire_lease("apply") if is_run else None

    seen = look_at_slots(CONFIG, store)

    assert (seen.is_run, seen.slot, seen.leftover) == (is_run, idle, ())
    assert told(slot_health(seen, is_streaming=True)) == outcome
    if lease is not None:
        lease.release()


# -- when the sensor sends them --------------------------------------------------------------------


class Ticks:
    """Reports on a clock that the test moves; Dagster stores what they give, unless told not to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0
        self.seen: SlotLook | EtlError = look()
        self.config = CONFIG
        #: By its name, what the checks of another shard find.
        self.shards: dict[str, Mapping[str, Finding]] = {}
        self.checks = PipelineChecks(KEY, DEFAULTS)
        self.reports = PipelineReports(clock=lambda: self.now, wall_clock=lambda: self.now)

    def tick(
        self, *, after_s: float = 5.0, stored: bool = True, age_s: float = 0.0, **more: Any
    ) -> list[AssetCheckEvaluation]:
        self.now += after_s
        said = status(at=self.now - age_s, **more)
        events = self.reports.due(
            self.checks, self.config, said, self._look, lambda shard: self.shards[shard]
        )
        self.reports.settle(stored)
        return events

    def _look(self, config: PipelineConfig) -> SlotLook:
        self.looks += 1
        if isinstance(self.seen, EtlError):
            raise self.seen
        return self.seen


def outcomes(events: list[AssetCheckEvaluation]) -> dict[str, bool]:
    assert {event.asset_key for event in events} <= {KEY}
    return {event.check_name: event.passed for event in events}


def test_a_day_of_a_quiet_stream_is_an_event_an_hour_for_each_check() -> None:
    ticks = Ticks()
    count = sum(len(ticks.tick()) for _ in range(24 * 3600 // 5))

    assert count == 24 * len(PIPELINE_CHECKS)
    assert ticks.looks == 24 * 12


def test_what_changes_is_sent_with_the_next_look_and_nothing_else() -> None:
    ticks = Ticks()
    assert outcomes(ticks.tick()) == dict.fromkeys(PIPELINE_CHECKS, True)

    ticks.seen = look(wal=RetainedWal(NAME, 150 * MIB, 100 * MIB, None))
    assert ticks.tick(after_s=299) == []
    assert outcomes(ticks.tick(after_s=1)) == {WAL: False}
    assert ticks.tick(after_s=60) == []
    ticks.seen = look()
    assert ticks.tick(after_s=59) == []
    assert outcomes(ticks.tick(after_s=1)) == {WAL: True}


def test_a_stream_that_ends_is_red_at_once_and_green_as_soon_as_it_continues() -> None:
    ticks = Ticks()
    ticks.tick()

    assert outcomes(ticks.tick(age_s=61)) == dict.fromkeys(PIPELINE_CHECKS, False)
    assert ticks.tick(age_s=66) == []
    assert outcomes(ticks.tick()) == dict.fromkeys(PIPELINE_CHECKS, True)


def test_what_was_not_stored_is_sent_again() -> None:
    ticks = Ticks()
    ticks.tick(stored=False)

    assert outcomes(ticks.tick()) == dict.fromkeys(PIPELINE_CHECKS, True)
    assert ticks.tick() == []


def test_nothing_is_said_while_the_stream_starts() -> None:
    ticks = Ticks()
    assert ticks.tick(phase="starting") == []
    assert ticks.looks == 0


# -- shards ----------------------------------------------------------------------------------------


def test_the_first_shard_reports_the_worst_of_all() -> None:
    """One asset, with the name of the pipeline, shows whether all shards are in order."""
    sharded = CONFIG.model_copy(
        update={
            "shards": {name: ShardConfig(publication=f"{name}_pub") for name in ("events", "logs")}
        }
    ).members()
    ticks = Ticks()
    ticks.config = sharded["shop"]
    late = judge_pipeline(status(lag_seconds=200.0), None, look(), DEFAULTS)
    ticks.shards = {"events": judge_pipeline(status(), None, look(), DEFAULTS), "logs": late}
    passing = {event.check_name: event for event in ticks.tick()}
    assert outcomes([*passing.values()]) == dict.fromkeys(PIPELINE_CHECKS, True)
    assert passing[LAG].metadata["shard"].value == "logs"
    assert "this one is the furthest behind" in str(passing[LAG].description)
    assert str(passing[SLOT].description).endswith("All 3 shards pass.")

    ticks.shards["events"] = judge_pipeline(status(), None, look(None), DEFAULTS)
    ticks.shards["logs"] = judge_stopped(DEAD)
    failed = {event.check_name: event for event in ticks.tick(after_s=300)}
    assert outcomes([*failed.values()]) == dict.fromkeys(PIPELINE_CHECKS, False)
    assert failed[SLOT].severity == AssetCheckSeverity.ERROR
    words = str(failed[SLOT].description)
    assert words.startswith("Shard 'logs': no replicator runs")
    assert f"Shard 'events': There is no slot {NAME!r}." in words
    assert words.endswith("1 of 3 shards pass.")
    # One of them is in order again, which is another outcome.
    ticks.shards["events"] = judge_pipeline(status(), None, look(), DEFAULTS)
    again = {event.check_name for event in ticks.tick(after_s=60)}
    assert again == {WAL, SLOT, STATE}

    # Another shard reports itself alone.
    ticks = Ticks()
    ticks.config = sharded["events"]
    assert outcomes(ticks.tick()) == dict.fromkeys(PIPELINE_CHECKS, True)


def test_a_shard_that_a_resource_cannot_choose_fails_its_checks_and_not_the_run() -> None:
    resource = SimpleNamespace(of_shard=partial(EtlResource.of_shard, SimpleNamespace()))

    found = asking_shards(cast(EtlResource, resource), DEFAULTS)("events")

    assert {name: each.passed for name, each in found.items()} == dict.fromkeys(
        PIPELINE_CHECKS, False
    )
    assert "no way to choose 'events'" in found[LAG].words
