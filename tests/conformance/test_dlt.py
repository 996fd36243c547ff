"""Destinations of dlt keep what every destination promises."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.errors import (
    DestinationError,
    DestinationReplaced,
    DestinationUnreachable,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.modes import ADDED_COLUMNS
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing import DestinationSuite
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    ORDERS,
    VISITS,
    Row,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    insert,
    order,
    relation,
    table,
    truncate,
    update,
)
from etl_dagster.testing.subject import DestinationChecks, Subject

pytest.importorskip("dlt")
deltalake = pytest.importorskip("deltalake")


LOGGED = replace(ORDERS, mode="append")


def with_columns_of(schema: TableSchema, found: list[Row]) -> list[Row]:
    """Rows with the columns of the table and its mode; lists are JSON at destinations of dlt."""
    names = (*schema.column_names, *ADDED_COLUMNS[schema.mode])
    rows = [{name: row.get(name) for name in names} for row in found]
    for row in rows:
        if row.get("_etl_unchanged"):
            row["_etl_unchanged"] = json.loads(row["_etl_unchanged"])
    return rows


class TestDuckDB(DestinationSuite):
    """Read as others read it, from the file that dlt has written."""

    #: The longest check loads one package after the other: nine seconds of a processor's time, with
    #: all of its process. On a machine with other work it took 18 s, and sometimes more than 30.
    patience_s = 120.0

    # dlt finds rows by their key, so tables without one are only appended to.
    test_a_row_without_a_key_is_found_by_its_parts = None
    test_of_several_equal_rows_one_is_deleted_for_each_delete = None
    test_an_update_without_a_key_replaces_one_equal_row = None
    test_random_changes_end_in_what_the_source_has = None

    def make_destination(self, folder: Path) -> DltDestination:
        self.path = folder / "warehouse.duckdb"
        return DltDestination("duckdb", credentials=str(self.path), work_folder=folder.parent)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        with duckdb.connect(str(self.path)) as connection:
            name = f'"{schema.schema_name}"."{schema.table_name}"'
            found: list[Row] = connection.table(name).to_arrow_table().to_pylist()
        return with_columns_of(schema, found)

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        with duckdb.connect(str(self.path)) as connection:
            found = connection.execute(
                "FROM duckdb_tables() SELECT 1 WHERE schema_name = ? AND table_name = ?",
                [schema.schema_name, schema.table_name],
            ).fetchall()
        return bool(found)

    def test_a_new_copy_may_have_other_columns_and_types(self, subject: Subject) -> None:
        """dlt changes no type and drops no column, so the table is created again."""
        subject.copy(ORDERS, [order(1, document="text")])
        subject.write(insert(ORDERS, **order(2)))
        first, _, third, _ = ORDERS.columns
        other = table([first, column("document", INT8, 10), third], snapshot=9900)
        subject.copy(other, [{"id": 1, "document": 7, "note": "x"}], copy_id="copy-2")
        subject.write(insert(other, id=3, document=8, note="y"))

        rows = [{"id": 1, "document": 7, "note": "x"}, {"id": 3, "document": 8, "note": "y"}]
        subject.holds(other, rows)
        with duckdb.connect(str(self.path)) as connection:
            found = connection.table("public.orders").columns
        assert sorted(found) == ["_etl_deleted", "document", "id", "note"]

    def test_a_load_that_was_complete_is_recognised_by_another_process(
        self, subject: Subject
    ) -> None:
        """Rows without a key show it: they would be there twice."""
        subject.copy(VISITS)
        changes = subject.write(insert(VISITS, page="/", at=1), insert(VISITS, page="/", at=2))
        subject.reopen()
        subject.deliver(changes)
        subject.deliver(changes, epoch=1, apply_from={VISITS.id: Lsn(1)})
        subject.reopen()
        subject.deliver(changes, epoch=2, apply_from={VISITS.id: Lsn(1)})

        copied = [{"page": "/", "at": 1}, {"page": "/", "at": 2}]
        subject.holds(VISITS, copied * 2)  # the stream was given a new copy, once

    def test_a_stalled_process_is_refused_once_another_has_loaded(self, subject: Subject) -> None:
        """It wakes up with a batch in its hands, and would write old rows over new ones."""
        subject.copy(ORDERS)
        stream = subject.stream
        early, late, newer, last = (
            stream.commit(insert(ORDERS, **order(1, note)))
            for note in ("early", "late", "newer", "last")
        )
        subject.deliver(early, epoch=1)
        other = subject.another()
        other.deliver(late + newer, epoch=2)

        for changes in (late, last):  # the second time it knows what is kept
            with pytest.raises(Superseded, match="a newer process loads into public"):
                subject.deliver(changes, epoch=1)
        subject.holds(ORDERS, [order(1, "newer")])

    def test_a_warehouse_that_never_had_a_copy_is_refused(self, subject: Subject) -> None:
        """Else dlt would make the tables, with the rows that have changed since and no others."""
        since = {ORDERS.id: Lsn(1)}
        subject.copy(ORDERS, [order(1)])
        first = subject.stream.commit(insert(ORDERS, **order(2)))
        subject.deliver(first, epoch=1, apply_from=since)
        subject.destination.shutdown()
        self.path.unlink()
        subject.reopen()
        later = subject.stream.commit(insert(ORDERS, **order(3)))
        with pytest.raises(DestinationReplaced, match="no record of the copy of table"):
            subject.deliver(later, epoch=2, apply_from=since)
        assert not self.table_exists(subject.destination, ORDERS)

        subject.copy(ORDERS, [order(1), order(2)], copy_id="copy-2")
        subject.deliver(later, epoch=3, apply_from=since)
        subject.holds(ORDERS, [order(1), order(2), order(3)])

    def test_nothing_is_loaded_while_the_clock_is_behind_the_newest_package(
        self, subject: Subject
    ) -> None:
        """Each try would add the rows again, and find an older position."""
        subject.copy(VISITS)
        subject.reopen()
        with duckdb.connect(str(self.path)) as connection:
            for table, load_id in (
                ("_dlt_pipeline_state", "_dlt_load_id"),
                ("_dlt_loads", "load_id"),
            ):
                later = f"update public.{table} set {load_id} = '9' || {load_id}"
                connection.execute(later)
        with pytest.raises(DestinationError, match="clock of this machine is behind"):
            subject.write(insert(VISITS, page="/", at=1))

        subject.holds(VISITS, [])

    def test_a_late_load_of_another_process_is_read_before_anything_is_written(
        self, subject: Subject
    ) -> None:
        """A stalled process loads after the newer one has begun, and before it writes."""
        subject.copy(VISITS)
        first, second = (subject.stream.commit(insert(VISITS, page="/", at=n)) for n in (1, 2))
        subject.deliver(first, epoch=1)
        other = subject.another()
        other.deliver(first, epoch=2)
        subject.deliver(second, epoch=1)
        with pytest.raises(DestinationUnreachable, match="another process has loaded") as raised:
            other.deliver(second, epoch=2)

        assert raised.value.retryable
        other.deliver(second, epoch=2)
        subject.holds(VISITS, [{"page": "/", "at": 1}, {"page": "/", "at": 2}])

    def test_a_log_replaces_a_mirror_and_nothing_replaces_a_log(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)])
        subject.copy(LOGGED, [order(2)], copy_id="copy-2", replay_from=50)
        assert [row["id"] for row in subject.kept(LOGGED)] == [2]

        with pytest.raises(TableWriteFailed, match="a mirror would replace them") as raised:
            subject.copy(ORDERS, [order(3)], copy_id="copy-3")
        assert "Rename the table at the destination" in raised.value.solution
        other = replace(
            table([*ORDERS.columns[:3], column("document", INT8, 10)], snapshot=9900), mode="append"
        )
        with pytest.raises(TableWriteFailed, match=r"'document' of public\.orders can't follow"):
            subject.copy(other, [order(8, document=9)], copy_id="copy-4")
        assert [row["id"] for row in subject.kept(LOGGED)] == [2]


def test_a_destination_that_is_away_leaves_no_folder_for_each_try(tmp_path: Path) -> None:
    """Each retry would leave one. A folder that was cleaned away is made again."""
    path, work = tmp_path / "warehouse.duckdb", tmp_path / "work"
    path.write_text("not a file of DuckDB's" * 1000)
    destination = DltDestination("duckdb", credentials=str(path), work_folder=work)
    destination.startup(MemoryStore())
    [folder] = (each for each in work.rglob("*") if each.is_dir() and each.parent != work)
    changes = batch(Transactions().commit(insert(ORDERS, **order(1))))
    for _ in range(2):
        written = destination.write_events(changes)
        assert written is not None
        assert isinstance(written.exception(60), DestinationUnreachable)
    assert list(folder.iterdir()) == []

    path.unlink()
    folder.rmdir()
    destination.write_table_rows(VISITS, chunk("copy", 0, VISITS, [])).result(60)
    folder_after = list(folder.iterdir())
    destination.shutdown()

    assert folder_after
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "reason", "solution"),
    [
        ("filesystem", "its settings have no bucket_url", "secrets.toml"),
        ("synapse", "without dlt[synapse]", 'pip install "dlt[synapse]"'),
    ],
)
def test_what_dlt_lacks_is_named(name: str, reason: str, solution: str, tmp_path: Path) -> None:
    with pytest.raises(DestinationError) as raised:
        DltDestination(name, work_folder=tmp_path).check()

    assert reason in raised.value.reason
    assert solution in raised.value.solution


@pytest.mark.slow
class TestDelta(DestinationChecks):
    """Read with the library of Delta. A load takes a second and more, so it is one story."""

    def test_tables_are_copied_changed_and_copied_again(self, subject: Subject) -> None:
        assert not subject.exists(ORDERS)
        subject.copy(ORDERS, [order(1), order(2, document="kept")], [order(3)])
        subject.holds(ORDERS, [order(1), order(2, document="kept"), order(3)])

        changes = subject.write(
            update(ORDERS, unchanged=["document"], id=2, note="changed"),
            delete(ORDERS, id=1),
            update(ORDERS, old={"id": 3}, **order(4, amount=Decimal("1.50"))),
        )
        now = [order(2, "changed", document="kept"), order(4, amount=Decimal("1.50"))]
        subject.holds(ORDERS, now)
        subject.reopen()
        subject.deliver(changes)
        subject.holds(ORDERS, now)

        wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=9000)
        subject.write(
            insert(ORDERS, **order(5)),
            truncate(ORDERS),
            relation(wider),
            insert(wider, **order(6, extra=7)),
        )
        subject.holds(wider, [order(6, extra=7)])

        other = table([*ORDERS.columns[:3], column("document", INT8, 10)], snapshot=9900)
        subject.copy(other, [order(8, document=9)], copy_id="copy-2")
        subject.holds(other, [order(8, document=9)])

    def make_destination(self, folder: Path) -> DltDestination:
        self.folder = folder
        return DltDestination(
            "filesystem",
            options={"bucket_url": folder.as_uri()},
            table_format="delta",
            work_folder=folder.parent,
        )

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        table = deltalake.DeltaTable(self._place(schema))
        found: list[Row] = table.to_pyarrow_table().to_pylist()
        return with_columns_of(schema, found)

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return deltalake.DeltaTable.is_deltatable(self._place(schema))

    def _place(self, schema: TableSchema) -> str:
        return str(self.folder / schema.schema_name / schema.table_name)
