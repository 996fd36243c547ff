"""Modes in a DuckDB file: what a new copy makes of what was kept, groups, odd values, counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.errors import TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableRows
from etl_dagster.model.modes import MODES, TableMode
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    Row,
    Transactions,
    Unheld,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    table,
    update,
)
from etl_dagster.values.columns import ColumnSchema

PARTS = table(
    [
        column("id", INT4, 1, key=1),
        column("note", TEXT, 2),
        column("amount", NUMERIC, 3, type_modifier=((12 << 16) | 2) + 4),
    ],
    name="parts",
)


def parts(mode: TableMode, *columns: ColumnSchema) -> TableSchema:
    return replace(PARTS, mode=mode, columns=columns or PARTS.columns)


class File:
    def __init__(self, path: Path) -> None:
        self.destination = DuckDBDestination(path)
        self.destination.startup(MemoryStore())
        self.stream = Transactions()
        self._copies = 0

    def copy(self, schema: TableSchema, rows: list[Row], *, at: int = 500) -> None:
        self._copies += 1
        copy_id = f"copy-{self._copies}"
        self.destination.drop_table_for_copy(schema)
        self.destination.write_table_rows(schema, chunk(copy_id, 0, schema, rows))
        end = end_of_copy(copy_id, self.stream.next_lsn.offset, copied_at_us=at)
        self.destination.write_table_rows(schema, end)

    def write(self, *changes: Any) -> None:
        self.destination.write_events(batch(self.stream.commit(*changes)))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.destination.query(sql).to_pylist()]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "shop.duckdb")
    yield file
    file.destination.shutdown()


def row(id: int, note: str | None = "a", amount: Any = None) -> Row:
    return {"id": id, "note": note, "amount": amount}


# -- what a copy can't continue with --------------------------------------------------------------


def tables(file: File) -> list[str]:
    return [
        name
        for (name,) in file.query(
            "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'public' ORDER BY 1"
        )
    ]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "mirror"])
def test_rows_kept_in_another_mode_stay_under_another_name(
    file: File, mode: TableMode, caplog: pytest.LogCaptureFixture
) -> None:
    kept = parts(mode)
    file.copy(kept, [row(1)])
    file.write(delete(kept, id=1))
    before = file.query("SELECT * FROM public.parts ORDER BY ALL")

    file.copy(parts("mirror"), [row(2)])

    assert tables(file) == ["parts", f"parts__{mode}_16384"]
    assert file.query("SELECT id FROM public.parts") == [(2,)]
    assert file.query(f"SELECT * FROM public.parts__{mode}_16384 ORDER BY ALL") == before
    assert f"what was kept in mode {mode} stays in public.parts__{mode}_16384" in caplog.text
    assert file.destination.count_rows() == {"public.parts": 1}


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "mirror"])
def test_a_table_that_was_renamed_by_hand_is_begun_again_by_a_copy(
    tmp_path: Path, mode: TableMode, caplog: pytest.LogCaptureFixture
) -> None:
    """The way to keep an old history; a copy that looked for it would fail however often."""
    path, kept = tmp_path / "shop.duckdb", parts(mode)
    first = File(path)
    first.copy(kept, [row(1), row(2, amount=Unheld("NaN"))])
    first.destination.shutdown()
    with duckdb.connect(str(path)) as connection:
        connection.execute("ALTER TABLE public.parts RENAME TO parts_2024")

    file = File(path)
    file._copies, file.stream = first._copies, first.stream
    with pytest.raises(TableWriteFailed, match="does not exist") as raised:
        file.write(insert(kept, **row(3)))
    assert "reset it: the copy creates it again" in raised.value.solution
    file.copy(kept, [row(4)])
    file.write(insert(kept, **row(5)))

    assert file.query("SELECT id FROM public.parts ORDER BY id") == [(4,), (5,)]
    assert file.query("SELECT id FROM public.parts_2024 ORDER BY id") == [(1,), (2,)]
    odd = file.query("SELECT table_name, text FROM _etl.odd_values")
    assert odd == [(f"parts__{mode}_16384", "NaN")]
    assert f"public.parts is no longer at the destination, where what was kept in mode {mode}" in (
        caplog.text
    )
    file.destination.shutdown()


def test_a_mirror_that_gets_another_mode_is_replaced(file: File) -> None:
    file.copy(parts("mirror"), [row(1)])

    file.copy(parts("scd2"), [row(2)])

    assert tables(file) == ["parts"]
    assert file.query("SELECT id, _etl_is_current FROM public.parts") == [(2, True)]


def test_a_history_of_another_type_or_key_stays_under_another_name(file: File) -> None:
    id_, note, amount = PARTS.columns
    file.copy(parts("scd2"), [row(1)])
    file.copy(parts("scd2", id_, replace(note, type_oid=INT8), amount), [row(1, None)])
    of_key = replace(note, primary_key_ordinal=2, is_identity=True)
    file.copy(parts("scd2", id_, of_key, amount), [row(1)])

    assert tables(file) == ["parts", "parts__scd2_16384", "parts__scd2_16384_"]


@pytest.mark.skipif(
    not DuckDBDialect.renames_altered, reason="there a history starts over with other columns"
)
def test_a_history_continues_with_wider_numbers_and_other_columns(file: File) -> None:
    id_, note, _ = PARTS.columns
    file.copy(parts("scd2"), [row(1), row(2)])
    wider = parts(
        "scd2", replace(id_, type_oid=INT8), replace(note, name="remark"), column("x", INT4, 4)
    )

    file.copy(wider, [{"id": 1, "remark": "a", "x": None}, {"id": 2, "remark": "b", "x": 1}])

    assert tables(file) == ["parts"]
    assert file.query("SELECT id, remark, x, _etl_is_current FROM public.parts ORDER BY ALL") == [
        (1, "a", None, True),
        (2, "a", None, False),
        (2, "b", 1, True),
    ]


# -- groups of small tables --------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_group_is_copied_into_tables_of_every_mode(file: File, mode: TableMode) -> None:
    others = [replace(parts(each), id=20000 + n, table_name=each) for n, each in enumerate(MODES)]
    file.copy(parts(mode), [row(1), row(2)])
    for copy in ("group-1", "group-2"):
        schemas = [parts(mode), *others]
        file.destination.drop_tables_for_copy(schemas)
        file.destination.write_whole_tables(
            [(s, _whole(s, [row(2), row(3)], copy, file.stream.next_lsn)) for s in schemas]
        )

    file.write(insert(parts(mode), **row(4)), *(insert(s, **row(4)) for s in others))

    counts = {"mirror": 3, "soft_delete": 4, "append": 7, "scd2": 4}
    assert file.query("SELECT count(*) FROM public.parts") == [(counts[mode],)]
    new = {"mirror": 3, "soft_delete": 3, "append": 5, "scd2": 3}
    for each in MODES:
        assert file.query(f"SELECT count(*) FROM public.{each}") == [(new[each],)], each


def _whole(schema: TableSchema, rows: list[Row], copy_id: str, replay_from: Lsn) -> TableRows:
    made = chunk(copy_id, 0, schema, rows)
    return TableRows(copy_id, made.pieces(), made.chunk, replay_from, 600)


# -- values that columns can't hold ------------------------------------------------------------


def odd(file: File) -> list[tuple[Any, ...]]:
    return file.query("SELECT key[1], text, commit_lsn FROM _etl.odd_values ORDER BY ALL")


def test_a_marked_row_keeps_what_its_columns_cannot_hold(file: File) -> None:
    kept = parts("soft_delete")
    file.copy(kept, [row(1, amount=Unheld("NaN")), row(2, amount=Unheld("NaN"))])
    file.write(delete(kept, id=1), update(kept, **row(2)))
    assert [entry[:2] for entry in odd(file)] == [("1", "NaN")]

    file.copy(kept, [row(2, amount=Unheld("Infinity"))])

    assert [entry[:2] for entry in odd(file)] == [("1", "NaN"), ("2", "Infinity")]


@pytest.mark.parametrize("mode", ["append", "scd2"])
def test_each_version_keeps_what_its_columns_cannot_hold(file: File, mode: TableMode) -> None:
    kept = parts(mode)
    file.copy(kept, [row(1, amount=Unheld("NaN"))])
    file.write(update(kept, **row(1, amount=Unheld("Infinity"))))
    file.write(update(kept, **row(1)))
    file.write(delete(kept, id=1))

    assert odd(file) == [("1", "Infinity", 1000), ("1", "NaN", 999)]


def test_a_new_copy_tells_rows_apart_by_what_their_columns_cannot_hold(file: File) -> None:
    """Both are null in their rows."""
    kept = parts("scd2")
    file.copy(kept, [row(1, amount=Unheld("NaN")), row(2)])

    file.copy(kept, [row(1, amount=Unheld("Infinity")), row(2)], at=700)

    assert file.query(
        "SELECT id, epoch_us(_etl_valid_from), _etl_is_current FROM public.parts ORDER BY ALL"
    ) == [(1, 500, False), (1, 700, True), (2, 500, True)]
    assert [entry[:2] for entry in odd(file)] == [("1", "Infinity"), ("1", "NaN")]


# -- counts ------------------------------------------------------------------------------------


def test_the_row_count_is_the_sources_rows_or_every_change_of_a_log(file: File) -> None:
    for number, mode in enumerate(MODES):
        kept = replace(parts(mode), id=30000 + number, table_name=mode)
        file.copy(kept, [row(1), row(2)])
        file.write(update(kept, **row(1, "b")), delete(kept, id=2))

    assert file.destination.count_rows() == {
        "public.mirror": 1,
        "public.soft_delete": 1,
        "public.append": 4,
        "public.scd2": 1,
    }
