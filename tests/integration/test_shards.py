"""A pipeline in shards: a slot and a position each, one destination, no table twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etl_dagster import embedding
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    DestinationShared,
    MoveRefused,
    PipelineInUse,
    ShardsOverlap,
    TableLocked,
)
from etl_dagster.model.states import Errored, Ready
from etl_dagster.runtime import moving
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, rows, running
from tests.support.shards import Dies, dying_at, move, prepare, states, table_id
from tests.support.waiting import PATIENCE_S, wait_until

MakeConfig = Callable[..., PipelineConfig]
TABLES = ("orders", "events", "items")
EVERYTHING = "insert, update, delete, truncate"


def sharded(make_config: MakeConfig, database: Database, **overrides: Any) -> PipelineConfig:
    return make_config(
        database,
        shards={"events": {"publication": "events_pub"}},
        **{"destination.changelog": True, **overrides},
    )


def run_until_caught_up(config: PipelineConfig) -> None:
    with embedding.running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    """Every table is the source's, and no change was applied twice."""
    for table in TABLES:
        assert_table_in_step(database, config, table)
    doubled = (
        "select 1 from _etl.changelog group by table_id, commit_lsn, ordinal having count(*) > 1"
    )
    assert rows(config, doubled) == []


def copies(config: PipelineConfig) -> list[tuple[Any, ...]]:
    return sorted(rows(config, "select table_id, copy_id from _etl.copies"))


def test_shards_in_one_process_fill_one_destination(
    database: Database, make_config: MakeConfig
) -> None:
    prepare(database)
    config = sharded(make_config, database)
    with embedding.running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        database.execute("update orders set n = id", "update events set n = -id")
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        statuses = pipeline.statuses()
    assert {name: (each.pipeline, [*each.tables]) for name, each in statuses.items()} == {
        "test": ("test", ["public.items", "public.orders"]),
        "events": ("test__events", ["public.events"]),
    }
    assert database.slots() == ["etl_dagster_apply_test", "etl_dagster_apply_test__events"]
    assert_in_step(database, config)


def test_a_table_is_moved_without_a_copy_and_without_losing_a_change(
    database: Database, make_config: MakeConfig
) -> None:
    prepare(database)
    config = sharded(make_config, database)
    run_until_caught_up(config)
    before = copies(config)
    # Each changes another row: a second change of a row would hide that the first was missed.
    database.execute("update orders set n = 1 where id = 1", "insert into orders values (11, 1)")
    meanwhile = ["update orders set n = 2 where id = 2", "insert into orders values (12, 2)"]
    move(config, database, "orders", "test", "events", meanwhile=meanwhile)
    database.execute("update orders set n = 3 where id = 3", "delete from orders where id = 4")
    run_until_caught_up(config)
    assert copies(config) == before
    assert_in_step(database, config)
    orders = table_id(database, "orders")
    assert orders not in states(config, "test")
    assert isinstance(states(config, "events")[orders], Ready)
    # And on, by the slot of the other shard.
    database.execute("update orders set n = 7", "update items set n = 7", "truncate events")
    run_until_caught_up(config)
    assert_in_step(database, config)
    assert database.slots() == ["etl_dagster_apply_test", "etl_dagster_apply_test__events"]


def test_a_shard_that_never_ran_is_given_its_first_table(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    newest_database.execute(
        "alter publication etl_pub add table events", "drop publication events_pub"
    )
    run_until_caught_up(make_config(newest_database, **{"destination.changelog": True}))
    newest_database.execute("create publication events_pub", "update events set n = 5")
    config = sharded(make_config, newest_database)
    before = copies(config)
    move(config, newest_database, "events", "test", "events")
    newest_database.execute("update events set n = n + 1")
    run_until_caught_up(config)
    assert copies(config) == before
    assert_in_step(newest_database, config)


#: Where a move dies, by the owner of a function, and whether that was done.
STEPS = {
    "after the slot": (moving, "copy_apply_slot", True),
    "before the publications": (moving, "move_between_publications", False),
    "after the publications": (moving, "move_between_publications", True),
    "before it is let go of": (moving.Move, "_let_go", False),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_move_resumes(
    newest_database: Database,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    run_until_caught_up(config)
    before = copies(config)
    newest_database.execute("update orders set n = 1")
    owner, name, is_after = STEPS[step]
    with monkeypatch.context() as patched:
        dying_at(patched, owner, name, after=is_after)
        with pytest.raises(Dies):
            move(config, newest_database, "orders", "test", "events")
    newest_database.execute(
        "update orders set n = 2 where id < 5", "delete from orders where id = 5"
    )
    move(config, newest_database, "orders", "test", "events")
    newest_database.execute("update orders set n = 3 where id = 1")
    run_until_caught_up(config)
    assert copies(config) == before
    assert_in_step(newest_database, config)
    assert [*newest_database.slots()] == [
        "etl_dagster_apply_test",
        "etl_dagster_apply_test__events",
    ]


@pytest.mark.parametrize("step", ["before the publications", "before it is let go of"])
def test_shards_that_start_after_an_interrupted_move_lose_nothing(
    newest_database: Database,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    run_until_caught_up(config)
    newest_database.execute("update orders set n = 1")
    owner, name, is_after = STEPS[step]
    with monkeypatch.context() as patched:
        dying_at(patched, owner, name, after=is_after)
        with pytest.raises(Dies):
            move(config, newest_database, "orders", "test", "events")
    newest_database.execute(
        "update orders set n = 2 where id < 5", "delete from orders where id = 5"
    )
    with embedding.running(config) as pipeline:
        holder = "events" if step == "before it is let go of" else "test"
        orders = table_id(newest_database, "orders")
        wait_until(
            lambda: (
                "public.orders" in (tables := pipeline.statuses()[holder].tables)
                and tables["public.orders"].state == "ready"
            )
        )
        assert pipeline.wait_until_caught_up(PATIENCE_S)
    assert [shard for shard in ("test", "events") if orders in states(config, shard)] == [holder]
    assert_in_step(newest_database, config)


def test_a_table_in_two_publications_is_refused(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    newest_database.execute("alter publication events_pub add table orders")
    config = sharded(make_config, newest_database)
    with pytest.raises(ShardsOverlap, match=r"'events_pub'.* both have public\.orders"):
        run_until_caught_up(config)
    assert newest_database.slots() == []


def test_a_table_that_comes_into_a_second_publication_stops_there_alone(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    with embedding.running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        newest_database.execute(
            "alter publication events_pub add table orders", "update orders set n = 4"
        )
        assert pipeline.wait_until_caught_up(PATIENCE_S)
    state = states(config, "events")[table_id(newest_database, "orders")]
    assert isinstance(state, Errored)
    assert state.reason == (
        "public.orders is a table of the shard 'test', and is not copied by the shard 'events'"
    )
    assert "etl-dagster move public.orders --to events" in state.solution
    assert_in_step(newest_database, config)


def test_another_pipeline_is_kept_from_the_destination(
    newest_database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    run_until_caught_up(config)
    caplog.clear()
    solutions = []
    for stranger in (
        # One that is in no shard, and one of the shards, with the others gone from its file.
        make_config(newest_database, pipeline="stranger"),
        make_config(newest_database),
    ):
        with pytest.raises(DestinationShared, match="test__events") as refused, running(stranger):
            pass
        solutions.append(refused.value.solution)
    assert [text.startswith("Put shards.events back") for text in solutions] == [False, True]
    # Where the destination doesn't know of it, this is all there is.
    [warning] = [line for line in caplog.messages if "etl_dagster_apply_test__events" in line]
    assert warning.startswith("slots of destinations or shards that the pipeline does not have")


def test_tables_that_are_being_written_are_not_moved(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    run_until_caught_up(config)
    with newest_database.connect(autocommit=False) as writer:
        writer.execute("update orders set n = 3")
        with pytest.raises(TableLocked):
            move(config, newest_database, "orders", "test", "events")
    run_until_caught_up(config)
    assert_in_step(newest_database, config)
    assert isinstance(states(config, "test")[table_id(newest_database, "orders")], Ready)


def test_tables_that_cannot_be_moved_are_refused_by_name(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    newest_database.execute(
        "create publication narrow_pub for table orders where (id > 0) with (publish = 'insert')"
    )
    config = sharded(make_config, newest_database)
    with embedding.running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        with pytest.raises(PipelineInUse, match="test__events"):
            move(config, newest_database, "orders", "test", "events")
    with pytest.raises(MoveRefused, match="no table would be left"):
        move(config, newest_database, "events", "events", "test")
    settings = ["publish = 'insert'"]
    if newest_database.server.binaries.major >= 18:
        settings.append(f"publish = '{EVERYTHING}', publish_generated_columns = stored")
    for setting in settings:
        newest_database.execute(f"alter publication events_pub set ({setting})")
        with pytest.raises(MoveRefused, match="differ in what they publish"):
            move(config, newest_database, "orders", "test", "events")
    newest_database.execute(
        f"alter publication events_pub set (publish = '{EVERYTHING}')",
        "alter publication etl_pub drop table orders",
        "alter publication etl_pub add table orders (id, n)",
    )
    with pytest.raises(MoveRefused, match="some of its rows or columns"):
        move(config, newest_database, "orders", "test", "events")


def test_names_that_pass_between_tables_of_two_shards_lose_no_rows(
    newest_database: Database, make_config: MakeConfig
) -> None:
    prepare(newest_database)
    config = sharded(make_config, newest_database)
    run_until_caught_up(config)
    # While neither streams: the other shard learns of its new table first.
    newest_database.execute(
        "alter table orders rename to orders_before",
        "create table orders (id bigint primary key, n int)",
        "insert into orders values (1, 100)",
        "alter publication events_pub add table orders",
    )
    with running(config.members()["events"]) as events:
        assert events.wait_until_caught_up(PATIENCE_S)
    newest_database.execute("update orders_before set n = 8 where id = 1")
    run_until_caught_up(config)
    assert_in_step(newest_database, config)
    assert_table_in_step(newest_database, config, "orders_before")
