"""Small writes go to files, files become few, old snapshots go; whatever is written stays."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.cli.app import cli
from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.destinations.ducklake.maintenance import Maintainer, Maintenance
from etl_dagster.integrations.dagster import ducklake_maintenance_job
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, delete, insert, order, update
from tests.ducklake.lakes import lake_in_file, reading, rows_of

FILES = "SELECT count(*) AS n FROM ducklake_list_files('lake', 'orders', schema => 'public')"


@pytest.fixture
def place(tmp_path: Path) -> LakePlace:
    """Inserts of two rows are kept in the catalog, larger ones in files."""
    return lake_in_file("duckdb", tmp_path, inline_rows=2)


@pytest.fixture
def destination(place: LakePlace) -> Iterator[DuckLakeDestination]:
    destination = DuckLakeDestination(place)
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


class Stream:
    """Writes batches."""

    def __init__(self, destination: DuckLakeDestination) -> None:
        self._destination = destination
        self._transactions = Transactions()

    def write(self, *changes: object) -> None:
        self._destination.write_events(batch(self._transactions.commit(*changes)))  # type: ignore[arg-type]

    def insert(self, first: int, count: int) -> None:
        self.write(*(insert(ORDERS, **order(number)) for number in range(first, first + count)))


@pytest.fixture
def stream(destination: DuckLakeDestination) -> Stream:
    return Stream(destination)


def maintain(place: LakePlace, *, days: float = 0, dry_run: bool = False) -> Maintenance:
    lake = Lake(place, timeout_s=20)
    return Maintainer(lake, older_than=timedelta(days=days), is_dry_run=dry_run).run()


def ids(place: LakePlace) -> list[int]:
    return [row["id"] for row in rows_of(place, "SELECT id FROM public.orders ORDER BY id")]


def files(place: LakePlace) -> int:
    return int(rows_of(place, FILES)[0]["n"])


def snapshots(place: LakePlace) -> int:
    return len(rows_of(place, "FROM ducklake_snapshots('lake')"))


def test_small_writes_become_a_file_and_small_files_one(place: LakePlace, stream: Stream) -> None:
    stream.insert(0, 1)
    assert files(place) == 0
    for first in (10, 20, 30):
        stream.insert(first, 3)
    assert files(place) == 3

    done = maintain(place)

    assert done.flushed_rows == {"public.orders": 1}
    assert files(place) < 3
    assert ids(place) == [0, 10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_deleted_rows_leave_their_files(place: LakePlace, stream: Stream) -> None:
    stream.insert(0, 4)
    stream.write(*(delete(ORDERS, id=number) for number in range(3)))

    maintain(place)

    deletions = rows_of(
        place,
        "SELECT delete_file FROM ducklake_list_files('lake', 'orders', schema => 'public')",
    )
    assert deletions == [{"delete_file": None}]
    assert ids(place) == [3]


def test_old_snapshots_go_and_younger_ones_stay(place: LakePlace, stream: Stream) -> None:
    stream.insert(0, 1)
    before = snapshots(place)
    assert maintain(place, days=1).expired_snapshots == 0
    assert snapshots(place) >= before

    done = maintain(place, days=0)

    assert done.expired_snapshots >= before
    assert snapshots(place) == done.snapshots == 1
    assert ids(place) == [0]


def test_what_the_catalog_keeps_of_the_ledger_does_not_grow(
    place: LakePlace, stream: Stream
) -> None:
    """A row that was updated stays in the catalog, and an expired snapshot alone frees none."""
    for number in range(5):
        stream.insert(number, 1)
    maintain(place)

    assert kept_in_catalog(place, "turns") == 1
    assert kept_in_catalog(place, "positions") == 1
    stream.insert(5, 1)
    assert ids(place) == [0, 1, 2, 3, 4, 5]


def kept_in_catalog(place: LakePlace, table: str) -> int:
    """Rows in the catalog, those of earlier snapshots included."""
    with reading(place) as connection:
        found = connection.execute(
            "SELECT i.table_name FROM __ducklake_metadata_lake.ducklake_inlined_data_tables AS i "
            "JOIN __ducklake_metadata_lake.ducklake_table AS t USING (table_id) "
            "WHERE t.table_name = ? AND t.end_snapshot IS NULL",
            [table],
        ).fetchall()
        counts = [
            connection.execute(f"SELECT count(*) FROM __ducklake_metadata_lake.{name}").fetchall()
            for (name,) in found
        ]
    return sum(count for [(count,)] in counts)


def test_a_dry_run_changes_nothing_and_says_what_would_be(place: LakePlace, stream: Stream) -> None:
    stream.insert(0, 1)
    before = snapshots(place)

    done = maintain(place, dry_run=True)

    assert done.flushed_rows == {"public.orders": 1}
    assert done.expired_snapshots > 0
    assert snapshots(place) == before
    assert files(place) == 0


def test_a_pipeline_keeps_writing_during_maintenance(place: LakePlace, stream: Stream) -> None:
    stream.insert(0, 3)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(10, 22):
                stream.insert(number, 1)
                stream.write(update(ORDERS, **order(number, "again")))
        except BaseException as failure:
            failures.append(failure)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        maintain(place)
    writer.join()

    assert not failures
    assert ids(place) == [0, 1, 2, *range(10, 22)]


def test_the_command_and_the_job_run_the_maintenance(
    place: LakePlace, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.insert(0, 1)
    config = tmp_path / "etl.yaml"
    section = {"type": "ducklake", "catalog": place.catalog.place, "data_path": place.data_path}
    source = {"dsn": "dbname=shop", "publication": "p"}
    config.write_text(yaml.dump({"pipeline": "s", "source": source, "destination": section}))

    dry = CliRunner().invoke(cli, ["lake", "maintain", "-c", str(config), "--dry-run", "--json"])
    assert json.loads(dry.stdout)["flushed_rows"] == {"public.orders": 1}
    command = ["lake", "maintain", "-c", str(config), "--older-than", "0"]
    assert CliRunner().invoke(cli, command).exit_code == 2
    told = CliRunner().invoke(cli, [*command, "--yes"])
    assert "public.orders: 1 rows written from the catalog to files" in told.stdout

    stream.insert(1, 1)
    run = ducklake_maintenance_job(config).execute_in_process()
    [output] = [event for event in run.all_events if event.is_successful_output]
    metadata = output.step_output_data.metadata  # type: ignore[attr-defined]
    assert metadata["rows flushed"].value == 1
    [orders] = metadata["tables"].records
    assert (orders.data["table"], orders.data["rows flushed"]) == ("public.orders", 1)
    assert ids(place) == [0, 1]
