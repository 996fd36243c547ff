"""A pipeline in shards on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.test_cli import ROWS, shop_in
from tests.support.database import Database


def test_commands_are_for_all_shards_or_for_the_one_that_is_named(
    newest_database: Database, tmp_path: Path
) -> None:
    shop = shop_in(newest_database, tmp_path)
    newest_database.execute(
        "create table events (id bigint primary key)",
        "insert into events select generate_series(1, 7)",
        "create table visits (id bigint primary key)",
        "create publication events_pub for table events, visits",
    )
    shop.configure(shards={"events": {"publication": "events_pub"}})

    alone = shop.run("run", "--shard", "events", "--until-caught-up", "--json")
    assert alone.returncode == 0, alone.stderr
    assert {json.loads(line)["pipeline"] for line in alone.stdout.splitlines()} == {"shop__events"}
    # The first shard has not run yet.
    status = json.loads(shop.call("status", "--json").stdout)
    assert list(status["shards"]) == ["events"]

    both = shop.run("run", "--until-caught-up", "--json")
    assert both.returncode == 0, both.stderr
    lines = map(json.loads, both.stdout.splitlines())
    assert {line["pipeline"] for line in lines} == {"shop", "shop__events"}
    status = json.loads(shop.call("status", "--json").stdout)
    assert {n: len(each["tables"]) for n, each in status["shards"].items()} == {
        "shop": 1,
        "events": 2,
    }
    [state_id] = [
        table["state_id"]
        for table in status["shards"]["events"]["tables"]
        if table["table"] == "public.events"
    ]
    assert state_id == "dev:shop__events-to-duckdb:public.events"
    checks = json.loads(shop.call("doctor", "--json").stdout)
    assert {
        name: [c["level"] for c in each if c["name"] == "shards"] for name, each in checks.items()
    } == {
        "shop": ["ok"],
        "events": ["ok"],
    }
    assert str(ROWS) in shop.call("query", "select count(*) from public.orders").stdout

    refused = shop.call("pause", "public.events")
    assert refused.returncode == 2
    assert "shop has several shards: choose one with --shard (shop, events)" in refused.stderr
    # All shards have one destination.
    assert shop.call("odd").stdout == "Every value is held by its column.\n"
    unknown = shop.call("status", "--shard", "archive")
    assert "shop has no shard 'archive': shop, events" in unknown.stderr

    tried = shop.run("move", "public.events", "--to", "shop", "--dry-run")
    assert "public.events moves from events (publication events_pub) to shop" in tried.stdout
    moved = shop.run("move", "public.events", "--to", "shop", "--yes")
    assert moved.returncode == 0, moved.stderr
    assert "public.events continues in shop from" in moved.stdout
    newest_database.execute("delete from events where id = 7")
    assert shop.run("run", "--until-caught-up", "--plain").returncode == 0
    again = shop.run("move", "public.events", "--to", "shop", "--yes")
    assert "public.events can't be moved: shop has it already" in again.stderr
    assert "6" in shop.call("query", "select count(*) from public.events").stdout

    # The destination doesn't miss a shard that was removed before it is left out.
    removed = shop.call("remove", "--shard", "events", "--yes", "--json")
    assert json.loads(removed.stdout)["pipelines"] == ["shop__events"]
    del shop.values["shards"]
    shop.configure()
    left = shop.run("run", "--until-caught-up", "--plain")
    assert left.returncode == 0, left.stderr
    assert "6" in shop.call("query", "select count(*) from public.events").stdout

    removed = shop.call("remove", "--yes", "--json")
    assert json.loads(removed.stdout)["pipelines"] == ["shop"]
    assert newest_database.slots() == []
