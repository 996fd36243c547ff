"""What docs/guides/ducklake.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.cli.app import cli
from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, delete, insert, order
from tests.ducklake.lakes import lake_in_file

PAGE = (Path(__file__).parents[2] / "docs/guides/ducklake.md").read_text("utf-8")
QUERIES = [
    text.strip()
    for text in re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    if text.startswith(("SELECT", "FROM"))
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a lake with some batches of orders."""
    folder = tmp_path_factory.mktemp("lake")
    place = lake_in_file("duckdb", folder)
    destination, stream = DuckLakeDestination(place), Transactions()
    destination.startup(MemoryStore())
    for number in range(14):
        destination.write_events(batch(stream.commit(insert(ORDERS, **order(number)))))
    destination.write_events(batch(stream.commit(delete(ORDERS, id=0))))
    destination.shutdown()
    path = folder / "etl.yaml"
    section = {"type": "ducklake", "catalog": place.catalog.place, "data_path": place.data_path}
    source = {"dsn": "dbname=shop", "publication": "p"}
    path.write_text(yaml.dump({"pipeline": "s", "source": source, "destination": section}))
    return path


def ask(config: Path, sql: str) -> str:
    result = CliRunner().invoke(cli, ["query", sql, "-c", str(config), "--csv"])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_page_has_a_query_for_each_way_to_look_back() -> None:
    shown = "\n".join(QUERIES)

    for way in ("AT (VERSION =>", "AT (TIMESTAMP =>", "ducklake_snapshots", "table_changes"):
        assert way in shown


@pytest.mark.parametrize("sql", QUERIES)
def test_each_query_of_the_page_is_answered(config: Path, sql: str) -> None:
    newest = int(ask(config, "SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").split()[1])
    if "TIMESTAMP" in sql:
        sql = sql.replace("INTERVAL 1 HOUR", "INTERVAL 0 SECOND")  # the lake is younger than that
    numbers = {"12": str(newest - 2), "14": str(newest)}
    sql = re.sub(r"\b1[24]\b", lambda found: numbers[found[0]], sql)

    lines = ask(config, sql).splitlines()

    assert len(lines) > 1
    if "VERSION" in sql:
        assert lines[1] == "13"  # before the last insert
    if "table_changes" in sql:
        assert lines[0].split(",")[:3] == ["snapshot_id", "rowid", "change_type"]
        assert {line.split(",")[2] for line in lines[1:]} == {"insert", "delete"}


def test_the_maintenance_of_the_page_runs(config: Path) -> None:
    [command] = re.findall(r"^    etl-dagster (lake maintain .*)$", PAGE, re.MULTILINE)

    result = CliRunner().invoke(cli, [*command.split(), "-c", str(config), "--dry-run"])

    assert result.exit_code == 0, result.output
    assert "Dry run: nothing changed." in result.stdout
