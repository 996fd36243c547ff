"""A pipeline that isn't needed any more is taken away for good, and nothing of it holds WAL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.destinations.duckdb import query
from tests.integration.test_cli import ROWS, Shop, assert_explained, running, shop_in
from tests.support.database import Database


@pytest.fixture
def shop(newest_database: Database, tmp_path: Path) -> Shop:
    """A pipeline that has copied its table, whose positions are mirrored."""
    shop = shop_in(newest_database, tmp_path)
    done = shop.run("run", "--until-caught-up")
    assert done.returncode == 0, done.stderr
    return shop


def left(shop: Shop) -> dict[str, Any]:
    """What is left of it, by place."""
    database = shop.database
    return {
        "slots": database.slots(),
        "pipelines": database.query("select name from etl.pipelines"),
        "states": database.query("select count(*) from etl.meltano_state"),
        "tables": query(
            shop.file, "select schema_name || '.' || table_name from duckdb_tables()"
        ).num_rows,
    }


def test_a_removed_pipeline_leaves_its_tables_and_nothing_else(shop: Shop) -> None:
    before = left(shop)
    tried = shop.call("remove", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "slots: etl_dagster_apply_shop" in tried.stdout
    assert "Meltano states: " in tried.stdout
    assert "orders" in tried.stdout
    assert left(shop) == before
    asked = shop.call("remove")
    assert asked.returncode == 2
    assert left(shop) == before
    # A user's copy stays.
    shop.database.execute(
        "insert into etl.meltano_state (state_id, completed_state, writer) select "
        "regexp_replace(state_id, ':[^:]*$', ':kept'), completed_state, 'me' "
        "from etl.meltano_state"
    )

    done = shop.call("remove", "--yes")

    assert done.returncode == 0, done.stderr
    assert left(shop) == {**before, "slots": [], "pipelines": [], "states": [(1,)]}
    assert shop.count() == ROWS
    # Nothing is left that a second removal, or a status, would find.
    assert_explained(shop.call("remove", "--yes"), "has no pipeline")
    # And a new start begins at the beginning, with what the old one left.
    again = shop.run("run", "--until-caught-up")
    assert again.returncode == 0, again.stderr
    assert shop.count() == ROWS


def test_its_tables_are_removed_on_request(shop: Shop) -> None:
    done = shop.call("remove", "--with-tables", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["removed"] is True
    assert answer["tables"] == ["public.orders"]
    assert left(shop) == {"slots": [], "pipelines": [], "states": [(0,)], "tables": 0}


def test_a_pipeline_that_runs_is_not_removed(shop: Shop) -> None:
    with running(shop):
        assert_explained(shop.call("remove", "--yes"), "runs the pipeline 'shop'")
    assert left(shop)["slots"] == ["etl_dagster_apply_shop"]


def test_the_rest_is_removed_if_the_source_is_gone(shop: Shop) -> None:
    shop.configure(state_store={"type": "postgres", "dsn": shop.database.dsn})
    shop.configure(source={"dsn": "postgresql://postgres@127.0.0.1:1/gone"})
    refused = shop.call("remove", "--yes")
    assert_explained(refused, "Connection refused")
    assert "--keep-slots" in refused.stderr

    done = shop.call("remove", "--yes", "--keep-slots")

    assert done.returncode == 0, done.stderr
    assert left(shop)["pipelines"] == []
    assert left(shop)["slots"] == ["etl_dagster_apply_shop"]


def test_several_destinations_are_removed_with_the_slot_they_share(
    newest_database: Database, tmp_path: Path
) -> None:
    shop = shop_in(newest_database, tmp_path)
    del shop.values["destination"]
    shop.configure(
        destinations={
            name: {"type": "duckdb", "path": f"{name}.duckdb"} for name in ("left", "right")
        }
    )
    assert shop.run("run", "--until-caught-up").returncode == 0
    one = shop.call("remove", "--destination", "left", "--yes")
    assert one.returncode == 0, one.stderr
    assert newest_database.slots() == ["etl_dagster_apply_shop"]
    assert newest_database.query("select name from etl.pipelines order by name") == [
        ("shop",),
        ("shop__right",),
    ]

    del shop.values["destinations"]["left"]
    shop.configure()
    done = shop.call("remove", "--yes", "--with-tables")

    assert done.returncode == 0, done.stderr
    assert newest_database.slots() == []
    assert newest_database.query("select name from etl.pipelines") == []
