"""Several destinations on the command line: the guide, followed, and what it says besides."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import duckdb
import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import opened_members, opened_store
from etl_dagster.cli.app import cli
from etl_dagster.config import parse_config
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.source.slots import apply_slot_name
from tests.integration.test_cli import ROWS, Shop, shop_in
from tests.support.commands import call
from tests.support.database import Database
from tests.support.fan_outs import QUICK
from tests.support.pipelines import assert_table_in_step

_GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "several-destinations.md"


def test_the_commands_of_the_guide_do_what_it_says(
    newest_database: Database, tmp_path: Path
) -> None:
    guide = _GUIDE.read_text("utf-8")
    shop = shop_in(newest_database, tmp_path)
    [file] = re.findall(r'```yaml title="etl.yaml"\n(.*?)```', guide, re.DOTALL)
    (tmp_path / "etl.yaml").write_text(file)
    # The guide's source is a server of its reader's.
    environ = {"ETL_DAGSTER__SOURCE__DSN": newest_database.dsn}
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) > 5
    printed = {}
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "etl-dagster"
        if arguments[0] == "run":
            done = shop.run(*arguments, environ=os.environ | environ)
        else:
            done = shop.call(*arguments, environ=environ)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed[command] = done.stdout
    both, one, counted = (
        next(text for command, text in printed.items() if command.startswith(f"etl-dagster {name}"))
        for name in ("status", "status --destination", "query")
    )
    assert "shop__warehouse to duckdb" in both
    assert "shop__archive to duckdb" in both
    assert "shop__warehouse" not in one
    assert str(ROWS) in counted
    assert newest_database.slots() == ["etl_dagster_apply_shop"]


@pytest.fixture
def several(newest_database: Database, tmp_path: Path) -> Shop:
    shop = shop_in(newest_database, tmp_path)
    del shop.values["destination"]
    shop.configure(
        destinations={
            name: {"type": "duckdb", "path": f"{name}.duckdb"} for name in ("left", "right")
        }
    )
    return shop


def test_programs_get_the_answers_by_destination(several: Shop) -> None:
    done = several.run("run", "--until-caught-up", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["pipeline"] for line in lines} == {"shop__left", "shop__right"}

    status = json.loads(several.call("status", "--json").stdout)
    assert status["pipeline"] == "shop"
    assert list(status["destinations"]) == ["left", "right"]
    one = json.loads(several.call("status", "--json", "--destination", "left").stdout)
    assert [table["state"] for table in one["tables"]] == ["ready"]
    assert one["slot"]["name"] == "etl_dagster_apply_shop"
    checks = json.loads(several.call("doctor", "--json").stdout)
    assert list(checks) == ["left", "right"]
    assert "error" not in {check["level"] for each in checks.values() for check in each}


def test_a_command_for_one_destination_asks_which(several: Shop) -> None:
    asked = several.call("reset", "public.orders")
    assert asked.returncode == 2
    assert "choose one with --destination (left, right)" in asked.stderr
    unknown = several.call("status", "--destination", "middle")
    assert unknown.returncode == 2
    assert "no destination 'middle' under `destinations`: left, right" in unknown.stderr
    alone = several.call("run", "--destination", "left")
    assert "all destinations run together" in alone.stderr


def test_a_reset_of_one_leaves_the_other_and_the_shared_slot(several: Shop) -> None:
    assert several.run("run", "--until-caught-up").returncode == 0
    assert several.call("reset", "--all", "--yes", "--destination", "left").returncode == 0
    assert several.database.slots() == ["etl_dagster_apply_shop"]
    states = json.loads(several.call("status", "--json").stdout)["destinations"]
    assert [states[name]["tables"][0]["state"] for name in ("left", "right")] == ["init", "ready"]
    several.database.execute("insert into orders values (1000000, 'after', now())")
    assert several.run("run", "--until-caught-up").returncode == 0
    assert _counts(several) == [str(ROWS + 1)] * 2

    reset = several.call("reset", "--all", "--yes")
    assert "Dropped etl_dagster_apply_shop." in reset.stdout
    assert several.database.slots() == []
    assert several.run("run", "--until-caught-up").returncode == 0
    assert _counts(several) == [str(ROWS + 1)] * 2


def test_a_repair_while_nothing_runs_covers_every_destination_or_the_chosen_one(
    newest_database: Database, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(
        "create table items (id int primary key, n int)",
        "insert into items select i, 0 from generate_series(1, 100) i",
        "create publication etl_pub for table items",
    )
    names = ("left", "right")
    values = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destinations": {
            name: {"type": "duckdb", "path": str(tmp_path / f"{name}.duckdb")} for name in names
        },
        "batch": {"max_fill_ms": 20},
    }
    file = tmp_path / "etl.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    config = parse_config(values, {})

    def catch_up() -> None:
        with opened_store(config) as store, opened_members(config) as parts:
            fan_out = FanOut(config, store, parts, pace=QUICK)
            fan_out.start()
            try:
                assert fan_out.wait_until_caught_up(60)
                used = CliRunner().invoke(cli, ["repair", "-c", str(file), "--all", "--yes"])
                assert (used.exit_code, "choose it with --destination" in used.output) == (2, True)
            finally:
                fan_out.shutdown()
                assert fan_out.wait(60)

    def tamper(name: str) -> None:
        with duckdb.connect(str(tmp_path / f"{name}.duckdb")) as there:
            there.execute("delete from public.items where id <= 2")

    def repaired(name: str) -> tuple[str, int] | None:
        member = config.member(name)
        assert_table_in_step(database, member, "items")
        with opened_store(member) as store:
            [table_id] = find_table_ids(member, store).values()
            outcome = store.get_note(f"repaired {table_id}")
        return None if outcome is None else (outcome["by"], outcome["missing"])

    catch_up()
    tamper("left")
    printed = call("repair", file, "--all", "--yes", "--destination", "left")
    assert "The next start of left compares every table" in printed
    assert database.slots() == [apply_slot_name("test")]
    database.execute("insert into items values (101, 0)")
    catch_up()
    # The row that only the other one had streamed is compared as well.
    assert repaired("left") == ("ranges", 3)
    assert repaired("right") is None

    tamper("left")
    tamper("right")
    assert "for each of left, right compares" in call("repair", file, "--all", "--yes")
    assert database.slots() == []
    database.execute("insert into items values (102, 0)", "delete from items where id = 102")
    catch_up()
    assert repaired("left") == repaired("right") == ("ranges", 2)


def _counts(shop: Shop) -> list[str]:
    counts = []
    for name in ("left", "right"):
        sql = "select count(*) from public.orders"
        told = shop.call("query", "--destination", name, "--csv", sql)
        counts.append(told.stdout.split()[-1])
    return counts


def test_the_doctor_finds_what_a_removed_destination_left(several: Shop) -> None:
    several.database.query(
        "select pg_create_logical_replication_slot('etl_dagster_apply_shop__gone', 'pgoutput')"
    )
    told = several.call("doctor")
    assert told.returncode == 0
    assert "pg_drop_replication_slot('etl_dagster_apply_shop__gone')" in told.stdout
    assert "apply_shop__left" not in told.stdout
