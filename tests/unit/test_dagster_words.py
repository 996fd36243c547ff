"""What a tick of the sensor says."""

from __future__ import annotations

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.sensor import words
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus


def test_a_tick_says_what_the_status_notes_and_logs_it_once() -> None:
    told = [
        PipelineStatus("shop__left", "duckdb", "streaming", note=note)
        for note in (None, "can't be set aside", "can't be set aside")
    ]
    log = words.TickLog(clock=lambda: 0.0)

    assert ["can't be set aside" in words.line(status, {}) for status in told] == [
        False,
        True,
        True,
    ]
    assert [log.is_due(words.gist(status, None, 0, {})) for status in told] == [True, True, False]


def test_the_list_of_ticks_shows_how_many_events_a_tick_has_sent_and_the_lag() -> None:
    """It shows the first 23 and the last 17 characters of a cursor."""
    table = TableStatus(1, "public.orders", "ready", "dev:shop-to-duckdb:public.orders")
    status = PipelineStatus(
        "shop", "duckdb", "streaming", lag_seconds=1.25, tables={table.name: table}
    )
    key = AssetKey("orders")
    check = AssetCheckEvaluation(asset_key=key, check_name="c", passed=True)

    did = words.Did.of(7, [AssetMaterialization(key), AssetMaterialization(key), check], 0)
    cursor = words.cursor(status, did)
    quiet = words.cursor(status, words.Did.of(8, [], 1))

    assert cursor[:23] == "streaming 1/1 +3 new; t"
    assert cursor[-17:].endswith("; lag 1.2 s")
    assert "tick 7: 2 materializations, 1 check result; as of" in cursor
    assert "tick 8: 1 copy requested; as of" in quiet
    assert "this tick: 2 materializations, 1 check result" in words.line(status, {}, did=did)


def test_a_stream_that_is_interrupted_does_not_show_the_lag_of_before() -> None:
    table = TableStatus(1, "public.orders", "ready", "dev:shop-to-duckdb:public.orders")
    status = PipelineStatus(
        "shop",
        "duckdb",
        "retrying",
        error="Connection refused",
        solution="Start `postgres`.",
        tables={table.name: table},
    )
    key = AssetKey("orders")
    line = words.line(status, {table.name: key})

    assert line.startswith("retrying: Connection refused; as of ")
    assert "1 of 1 tables were in step, lag not known, confirmed" in line
    assert line.endswith("\n\nWhat to do: Start 'postgres'.")
    assert words.cursor(status, words.Did(7))[-17:].endswith("; lag not known")


def test_a_table_that_waits_for_its_copy_is_not_said_to_be_copied() -> None:
    """No copy of a table without an asset is requested."""
    tables = {
        name: TableStatus(number, name, state, f"dev:shop-to-duckdb:{name}")
        for number, (name, state) in enumerate(
            {"public.a": "init", "public.b": "data_sync", "public.new": "init"}.items()
        )
    }
    status = PipelineStatus("shop", "duckdb", "streaming", tables=tables)
    keys = {name: AssetKey(name.split(".")) for name in ("public.a", "public.b")}
    line = words.line(status, keys)

    assert "waiting for their copy: public.a; being copied: public.b; no asset yet" in line
    assert line.endswith("(reload the code location): public.new")


def test_the_sensors_page_says_what_to_do_where_nothing_streams() -> None:
    """The page shows the cursor as a whole, and the message only after a click."""
    note = "no process streams the pipeline\n\nWhat to do: Start it."
    cursor = words.cursor_without_stream(
        note, words.Did(3), "Start the service, `etl-dagster run`."
    )

    assert cursor.startswith(
        "not streaming: no process streams the pipeline. What to do: Start the"
    )
    assert "'etl-dagster run'; tick 3: nothing new; " in cursor
