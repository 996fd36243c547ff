"""The demo, as a user who has just cloned the repository sees it.

One demo for all tests, in the order of a visit: each continues as the one before left it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.assembly import opened_store
from etl_dagster.demo.flights import TABLES
from etl_dagster.model.coordination import CopyPlan
from tests.acceptance.running_demo import RunningDemo
from tests.acceptance.visit import Visit, visiting
from tests.support.leaks import make_secret

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WRONG = make_secret("not-the-password")
SENSOR = "flights_replication"
SENSOR_PAGE = f"/locations/etl_dagster.demo.definitions/sensors/{SENSOR}"
FLIGHTS = ["flights", "public", "flights"]
#: Copies of tables, what is made from them, and the streams of a `meltano run`.
ALL_BY_RUNS = {*TABLES, "delays_by_airline", "fuel_prices", "exchange_rates", "positions"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "a path with spaces"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def demo(home: Path) -> Iterator[RunningDemo]:
    started = RunningDemo(home, rate=50)
    try:
        started.wait_for_line("Stop ")
        started.until("the code location", started.is_loaded)
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def visitor(demo: RunningDemo, home: Path) -> Iterator[Visit]:
    with visiting(demo.url, home) as visit:
        yield visit


@pytest.fixture
def visit(visitor: Visit) -> Iterator[Visit]:
    yield visitor
    visitor.leave()


def test_everything_is_there_without_a_click(demo: RunningDemo, home: Path) -> None:
    assert f"  loaded {336_776:,} rows into flights" in demo.output
    assert len([line for line in demo.output if re.match(r"[A-Z][a-z]+ {2,}", line)]) == 5
    demo.until("all assets", lambda: materialized_by_runs(demo) >= ALL_BY_RUNS)
    assert schedules_that_run(demo) == {
        "copy_airports_every_night",
        "compare_with_source_every_hour",
    }
    runs = demo.runs("flights_copy")
    assert {run["tags"]["meltano/state_id"] for run in runs} == {
        f"demo:flights-to-duckdb:public.{table}" for table in TABLES
    }
    (copied,) = [event for event in demo.materializations("flights/public/planes") if event["run"]]
    assert copied["table_copy_rows"] == copied["dagster/row_count"] == str(TABLES["planes"])
    assert copied["meltano/state_id"] == "demo:flights-to-duckdb:public.planes"
    # It would start a run, seconds of a processor, whenever the stream brings flights.
    demo.switch("automation", on=False)


def test_a_second_demo_in_the_same_folder_is_refused(demo: RunningDemo, home: Path) -> None:
    second = RunningDemo(home, rate=0)
    assert second.process.wait() == 2
    with pytest.raises(pytest.fail.Exception, match="already running"):
        second.wait_for_line("Stop ")


def test_changes_are_reported_without_a_run(demo: RunningDemo) -> None:
    demo.at_source("UPDATE airports SET tz = tz WHERE faa IN ('EWR', 'JFK', 'LGA')")
    (reported,) = demo.until(
        "the report of a change",
        lambda: [
            event
            for event in demo.materializations("flights/public/airports")
            if event.get("rows_updated") == "3"
        ],
    )
    assert not reported["run"]
    assert {"lag_seconds", "lag_bytes", "confirmed_lsn", "confirmed_lsn_offset"} < set(reported)


def test_the_next_tick_replaces_a_replicator_that_was_killed(demo: RunningDemo) -> None:
    (first,) = demo.until("a replicator", demo.replicators)
    first.kill()
    demo.until("a change after a kill", demo.change_a_row(seats=1001))
    (second,) = demo.until("a second replicator", demo.replicators)
    assert second.pid != first.pid


def test_a_wrong_password_fails_a_tick_that_says_what_to_do(demo: RunningDemo) -> None:
    def with_password(password: str | None) -> None:
        def change(values: dict[str, Any]) -> None:
            values["source"].pop("password", None)
            if password is not None:
                values["source"]["password"] = password

        demo.write_config(change)

    with_password(WRONG)
    failed = demo.until(
        "a failed tick", lambda: [t for t in demo.ticks(SENSOR) if t["status"] == "FAILURE"]
    )[0]
    cause = failed["error"]["cause"]["message"]
    assert "password authentication failed" in cause
    assert "What to do: Check " in cause
    assert WRONG not in demo.log
    with_password(None)
    demo.until("a change after a wrong password", demo.change_a_row(seats=1002))


@pytest.mark.browser
def test_a_visitor_reads_in_a_failed_tick_what_to_do(visit: Visit) -> None:
    visit.open(SENSOR_PAGE)
    visit.sees("View", exactly=True).click()
    visit.sees("password authentication failed")
    visit.sees("What to do: Check source.user and source.password")


def test_the_stream_ends_with_the_lease_of_a_sensor_that_is_off(demo: RunningDemo) -> None:
    demo.switch(SENSOR, on=False)
    demo.until("the end of the lease", lambda: not demo.replicators())
    has_arrived = demo.change_a_row(seats=1003)
    demo.switch(SENSOR, on=True)
    demo.until("a change after a pause", has_arrived)


@pytest.mark.browser
def test_a_visitor_sees_tables_their_lineage_and_how_they_change(visit: Visit) -> None:
    visit.open("/assets")
    visit.sees("flights / public / flights")
    visit.sees("Every departure from New York")
    visit.does_not_see("Loading...")
    visit.sees("Materialized")

    visit.open("/assets/flights/public/flights?view=lineage")
    for group in ("postgres_flights", "flights", "marts", "meltano"):
        visit.sees(group)
    visit.does_not_see("Loading...")
    visit.picture("lineage")

    visit.open("/assets/flights/public/flights")
    visit.sees("Row count")
    for section in ("Description", "Columns"):
        visit.sees(section).click()
    visit.sees("Plots").click()
    for plot in ("lag_seconds", "rows_updated"):
        visit.sees(plot)
    visit.picture("dagster-ui", height=1120)

    visit.open(SENSOR_PAGE)
    visit.sees("streaming 5/5")


@pytest.mark.browser
def test_a_copy_that_a_visitor_cancels_is_resumed_at_its_chunk_by_the_next_click(
    demo: RunningDemo, visit: Visit
) -> None:
    def copies(status: str) -> set[str]:
        runs = [run for run in demo.runs("__ASSET_JOB") if run["status"] == status]
        return {run["runId"] for run in runs if run["assetSelection"] == [{"path": FLIGHTS}]}

    page, before = f"/assets/{'/'.join(FLIGHTS)}", copies("SUCCESS")
    ((flights,),) = demo.at_source("SELECT 'public.flights'::regclass::oid::int")
    with opened_store(demo.config) as store:
        last = store.get_copy_plan(flights)
        assert last is not None

        def under_way() -> CopyPlan | None:
            plan = store.get_copy_plan(flights)
            is_begun = plan is not None and plan.copy_id != last.copy_id and plan.finished
            return plan if is_begun else None

        visit.open(page)
        visit.clicks("Materialize")
        with demo.locked("flights", once=under_way):
            (begun,) = demo.until("a copy", lambda: copies("STARTED"))
            visit.open(f"/runs/{begun}")
            visit.clicks("Terminate")
            visit.clicks("Terminate 1 run", in_dialog=True)
            visit.sees("Canceled")
        stopped = under_way()
    assert stopped is not None
    chunks, done = len(stopped.chunks), len(stopped.finished)
    assert 0 < done < chunks
    # Readers still have the rows of the copy before.
    assert demo.at_destination("SELECT count(*) > 300_000 FROM public.flights") == [(True,)]

    visit.open(page)
    visit.clicks("Materialize")
    (copied,) = demo.until("the next copy", lambda: copies("SUCCESS") - before)
    visit.open(f"/runs/{copied}")
    visit.sees("Success")
    (made,) = [m for m in demo.materializations("/".join(FLIGHTS)) if m["run"] == copied]
    assert made["copy_id"] == stopped.copy_id
    assert made["table_copy_resumed_chunks"] == str(done)


@pytest.mark.browser
def test_a_check_fails_for_a_row_that_is_missing_and_passes_once_it_is_repaired(
    demo: RunningDemo, visit: Visit
) -> None:
    page = "/assets/flights/public/airports?view=checks&checkDetail=content_match"
    demo.spoil("DELETE FROM public.airports WHERE faa = 'EWR'")
    visit.open(page)
    visit.clicks("Execute")
    visit.sees("1 missing")
    visit.picture("failed-check")

    visit.open("/locations/etl_dagster.demo.definitions/jobs/flights_repair/playground")
    visit.clicks("Launch Run")
    demo.until(
        "the repair", lambda: [run["status"] for run in demo.runs("flights_repair")] == ["SUCCESS"]
    )
    visit.open(page)
    visit.clicks("Execute")
    visit.sees("Passed", exactly=True)


def test_it_stops_without_a_trace_and_continues(demo: RunningDemo, home: Path) -> None:
    assert_nothing_left(demo, demo.stop(signal.SIGINT))
    quiet = RunningDemo(home, rate=0)
    try:
        quiet.wait_for_line("Stop ")
        assert not [line for line in quiet.output if "loaded" in line]
        quiet.until("equal contents", lambda: contents_here(quiet) == contents_of_source(quiet))
        ((changed,),) = quiet.at_source(
            "SELECT count(*) FROM flights WHERE updated_at > (SELECT min(updated_at) FROM flights)"
        )
        assert changed > 0
        assert_nothing_left(quiet, quiet.stop(signal.SIGTERM))
    finally:
        quiet.kill()


def assert_nothing_left(demo: RunningDemo, processes: list[Any]) -> None:
    assert processes == []
    assert not (demo.folder / "demo.lock").exists()
    assert not (demo.folder / "postgres" / "data" / "postmaster.pid").exists()
    assert [path for path in demo.folder.rglob("*") if path.is_socket()] == []


def schedules_that_run(demo: RunningDemo) -> set[str]:
    answer = demo.ask(
        "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {"
        " ... on RepositoryLocation { repositories { schedules {"
        " name scheduleState { status } } } } } } } } }"
    )
    return {
        schedule["name"]
        for entry in answer["workspaceOrError"]["locationEntries"]
        for repository in entry["locationOrLoadError"]["repositories"]
        for schedule in repository["schedules"]
        if schedule["scheduleState"]["status"] == "RUNNING"
    }


def materialized_by_runs(demo: RunningDemo) -> set[str]:
    answer = demo.ask("{ assetNodes { assetKey { path } assetMaterializations { runId } } }")
    return {
        node["assetKey"]["path"][-1]
        for node in answer["assetNodes"]
        if any(event["runId"] for event in node["assetMaterializations"])
    }


#: One row for each table, the same on both sides: how many rows, and a sum over the keys.
_CONTENTS = """
SELECT 'airlines', count(*), sum(length(name)) FROM public.airlines
UNION ALL SELECT 'airports', count(*), sum(alt) FROM public.airports
UNION ALL SELECT 'planes', count(*), sum(seats) FROM public.planes
UNION ALL SELECT 'weather', count(*), sum(wind_dir) FROM public.weather
UNION ALL SELECT 'flights', count(*), sum(flight_id) FROM public.flights
UNION ALL SELECT 'delays', count(dep_delay), sum(dep_delay) FROM public.flights
UNION ALL SELECT 'cancelled', count(*), sum(flight_id) FROM public.flights
          WHERE status = 'cancelled'
ORDER BY 1
"""


def contents_of_source(demo: RunningDemo) -> list[tuple[str, int, int]]:
    return [(name, int(rows), int(total)) for name, rows, total in demo.at_source(_CONTENTS)]


def contents_here(demo: RunningDemo) -> list[tuple[str, int, int]]:
    return [(name, int(rows), int(total)) for name, rows, total in demo.at_destination(_CONTENTS)]
