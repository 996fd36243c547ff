"""Logs that dlt keeps in a bucket, loads that are interrupted, and files that are staged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.errors import DestinationError
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    Row,
    column,
    delete,
    insert,
    order,
    relation,
    table,
    truncate,
    update,
)
from etl_dagster.testing.keeping import ModeChecks
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.conformance.test_dlt import LOGGED, TestDelta, TestDuckDB, with_columns_of

staged = pytest.importorskip("tests.support.staged")

#: Not by these names: pytest would collect the suites twice.
DUCKDB, DELTA = TestDuckDB, TestDelta
del TestDuckDB, TestDelta


class StagedHooks(DUCKDB):
    __test__ = False

    def make_destination(self, folder: Path) -> DltDestination:
        self.path = folder / "warehouse.duckdb"
        name = f"{staged.__name__}.duckdb"
        return DltDestination(name, credentials=str(self.path), work_folder=folder.parent)


def test_files_are_staged_in_a_bucket_if_dlt_is_configured_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dlt's own settings; the rows go there as Parquet, which holds every value."""
    monkeypatch.setenv("STAGING_TYPE", "filesystem")
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", (tmp_path / "bucket").as_uri())
    hooks = StagedHooks()
    subject = Subject(hooks, hooks.make_destination(tmp_path), tmp_path)
    subject.start()
    try:
        subject.copy(ORDERS, [order(1, amount=Decimal("1.50")), order(2)])
        subject.write(update(ORDERS, **order(1, "x")), delete(ORDERS, id=2))
        subject.write(insert(ORDERS, **order(3)))

        subject.holds(ORDERS, [order(1, "x"), order(3)])
    finally:
        subject.shut_down()
    files = [path for path in staged.loaded if "/orders/" in path]
    assert files
    assert {Path(path).suffix for path in files} == {".parquet"}
    assert all(path.startswith(str(tmp_path / "bucket")) for path in files)


class FilesHooks(DestinationHooks):
    """Plain Parquet files, read by their names."""

    def make_destination(self, folder: Path) -> DltDestination:
        self.folder = folder
        return DltDestination(
            "filesystem", options={"bucket_url": folder.as_uri()}, work_folder=folder.parent
        )

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        files = self.folder / schema.schema_name / schema.table_name / "*.parquet"
        found = duckdb.read_parquet(str(files), union_by_name=True).to_arrow_table().to_pylist()
        return with_columns_of(schema, found)

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return (self.folder / schema.schema_name / schema.table_name).exists()


class TestFiles(FilesHooks, ModeChecks):
    """A table is nothing but the files of its load packages."""

    # Nothing is looked up in files: such a value is said to be unknown.
    test_an_unchanged_value_is_the_last_one_logged_or_said_to_be_unknown = None


class IcebergHooks(FilesHooks):
    """Read with the library of Iceberg, from the newest metadata."""

    def make_destination(self, folder: Path) -> DltDestination:
        self.folder = folder
        return DltDestination(
            "filesystem",
            options={"bucket_url": folder.as_uri()},
            table_format="iceberg",
            work_folder=folder.parent,
        )

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        from pyiceberg.table import StaticTable

        metadata = self.folder / schema.schema_name / schema.table_name / "metadata"
        newest = StaticTable.from_metadata(str(max(metadata.glob("*.json"))))
        return with_columns_of(schema, newest.scan().to_arrow().to_pylist())


FILESYSTEM = "dlt.destinations.impl.filesystem.filesystem"
KINDS: dict[str, type[DestinationHooks]] = {
    "duckdb": DUCKDB,
    "delta": DELTA,
    "iceberg": IcebergHooks,
    "files": FilesHooks,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_log_has_each_change_once_though_loads_end_before_they_are_complete(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is there, and dlt hasn't written down so, when the process ends."""
    if kind == "iceberg":
        pytest.importorskip("pyiceberg")
    hooks = KINDS[kind]()
    subject = Subject(hooks, hooks.make_destination(tmp_path), tmp_path)
    subject.start()

    def interrupted(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("dlt.load.load.Load.complete_package", _end)
            with pytest.raises(DestinationError):
                work()
        subject.reopen()

    copied = [order(1), order(2)]
    stream = subject.stream
    changes = stream.commit(insert(LOGGED, **order(3)), update(LOGGED, **order(3, "x")))
    changes += stream.commit(delete(LOGGED, id=1), truncate(LOGGED))
    extra = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=9000)
    wider = replace(extra, mode="append")
    later = stream.commit(relation(wider), insert(wider, **order(4, extra=7)))
    try:
        subject.destination.drop_table_for_copy(LOGGED)
        interrupted(lambda: subject.write_chunk(LOGGED, 0, copied))
        subject.write_chunk(LOGGED, 0, copied)
        interrupted(lambda: subject.end_copy(LOGGED, replay_from=900))
        subject.end_copy(LOGGED, replay_from=900)
        subject.deliver(changes[:1])
        interrupted(lambda: subject.deliver(changes))
        subject.deliver(changes[:2])
        subject.deliver(changes)
        interrupted(lambda: subject.deliver(later))
        subject.deliver(later)

        found = [(row["_etl_op"], row["id"], row.get("extra")) for row in subject.kept(wider)]
    finally:
        subject.shut_down()
    assert sorted(found, key=repr) == sorted(
        [
            ("copy", 1, None),
            ("copy", 2, None),
            ("insert", 3, None),
            ("update", 3, None),
            ("delete", 1, None),
            ("truncate", None, None),
            ("insert", 4, 7),
        ],
        key=repr,
    )


@pytest.mark.parametrize("kind", ["files", "delta"])
@pytest.mark.parametrize("table_of_dlt", ["_dlt_version", "_dlt_pipeline_state"])
def test_a_truncated_file_of_dlts_own_does_not_prevent_a_load(
    kind: str, table_of_dlt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed while it writes into a folder leaves a part of the file."""
    hooks = KINDS[kind]()
    subject = Subject(hooks, hooks.make_destination(tmp_path), tmp_path)
    subject.start()

    def cut_off(client: Any, path: str, data: Any) -> None:
        text = json.dumps(data, default=str)
        is_the_one = f"/{table_of_dlt}/" in path
        client.fs_client.write_text(path, text[: len(text) // 2] if is_the_one else text)
        if is_the_one:
            _end()

    def interrupted(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(f"{FILESYSTEM}.FilesystemClient._write_to_json_file", cut_off)
            with pytest.raises(DestinationError):
                work()
        subject.reopen()

    added = subject.stream.commit(insert(LOGGED, **order(3)))
    try:
        subject.destination.drop_table_for_copy(LOGGED)
        interrupted(lambda: subject.write_chunk(LOGGED, 0, [order(1), order(2)]))
        subject.write_chunk(LOGGED, 0, [order(1), order(2)])
        subject.end_copy(LOGGED, replay_from=900)
        subject.deliver(added)
        found = [(row["_etl_op"], row["id"]) for row in subject.kept(LOGGED)]
    finally:
        subject.shut_down()
    assert sorted(found) == [("copy", 1), ("copy", 2), ("insert", 3)]


def _end(*_: object, **__: object) -> None:
    raise OSError("the process ends here")
