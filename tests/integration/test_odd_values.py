"""Entries of ``_etl.odd_values`` follow their rows, whatever happens to these."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from etl_dagster.cli.app import cli
from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.errors import RowsOutdated
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import ChunkId, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    Change,
    SourceTable,
    Transactions,
    Unheld,
    batch,
    chunk,
    column,
    end_of_copy,
    relation,
    table,
    truncate,
)
from etl_dagster.values.types import Enum

_MONEY = ((12 << 16) | 2) + 4
_COLUMNS = (
    column("id", INT4, 1, key=1),
    column("at", TIMESTAMPTZ, 2, key=2),
    column("amount", NUMERIC, 3, type_modifier=_MONEY),
    column("note", TEXT, 4),
)
KEYED = table(_COLUMNS, table_id=1, name="keyed")
KEYLESS = table(
    [
        column("id", INT4, 1, is_identity=True),
        column("amount", NUMERIC, 2, type_modifier=_MONEY, is_identity=True),
        column("note", TEXT, 3, is_identity=True),
    ],
    table_id=2,
    name="keyless",
    identity="f",
)
_TIMES = [datetime(2024, 1, 1, 12, tzinfo=UTC), datetime(2024, 7, 1, 12, 0, 0, 500_000, UTC)]
_AMOUNTS = [None, Decimal("1.00"), Unheld("NaN"), Unheld("Infinity")]
_NOTES = [None, "a", Unheld("\\xFF"), Unheld("\\x5C\\xFF")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def opened(folder: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(folder / "test.duckdb")
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def _answer(folder: Path, sql: str) -> Counter[tuple[Any, ...]]:
    found = query(folder / "test.duckdb", sql).to_pylist()
    return Counter(tuple(row.values()) for row in found)


def _held(folder: Path, schema: TableSchema, table: str | None = None) -> Counter[tuple[Any, ...]]:
    """The rows at the destination; a join puts what the table can't hold in its place."""
    table = table or f"public.{schema.table_name}"
    held = ", ".join(
        f"coalesce((SELECT e.text FROM _etl.odd_values AS e WHERE e.table_name = "
        f"'{schema.table_name}' AND e.column_name = '{name}' "
        f"AND e.key = [t.id::VARCHAR, (t.at AT TIME ZONE 'UTC')::VARCHAR]), t.{name}::VARCHAR)"
        f" AS {name}"
        for name in ("amount", "note")
    )
    return _answer(
        folder,
        f"SELECT t.id::VARCHAR, strftime(t.at AT TIME ZONE 'UTC', '%Y-%m-%d %H:%M:%S'), {held} "
        f"FROM {table} AS t",
    )


def _entries(folder: Path, schema: TableSchema) -> Counter[tuple[Any, ...]]:
    return _answer(
        folder,
        f"SELECT column_name, text FROM _etl.odd_values WHERE table_name = '{schema.table_name}'",
    )


def _odd(source: SourceTable) -> Counter[tuple[Any, ...]]:
    return Counter(
        (name, str(value))
        for row in source.rows
        for name, value in row.items()
        if isinstance(value, Unheld)
    )


def _statement(source: SourceTable, random: Random) -> Change | None:
    kind = random.choice("IIIUUUUDDT" if random.random() < 0.1 else "IIIUUUUDD")
    new = {
        "id": random.randrange(4),
        "at": random.choice(_TIMES),
        "amount": random.choice(_AMOUNTS),
        "note": random.choice(_NOTES),
    }
    new = {name: new[name] for name in source.schema.column_names}
    if kind == "T":
        return source.truncate()
    if kind == "I" or not source.rows:
        return source.insert(new)
    place = random.randrange(len(source.rows))
    if kind == "D":
        return source.delete(place)
    names = random.sample(sorted(new), random.randint(1, len(new)))
    return source.update(place, {name: new[name] for name in names})


def _copy(
    destination: DuckDBDestination,
    sources: list[SourceTable],
    copy_id: str,
    lsn: int,
    *,
    whole: bool,
) -> None:
    """Copy the tables, each part twice."""
    schemas = [source.schema for source in sources]
    if whole:
        destination.drop_tables_for_copy(schemas)
        for _ in range(2):
            destination.write_whole_tables(
                [
                    (source.schema, whole_table(copy_id, source.schema, source.rows, lsn))
                    for source in sources
                ]
            )
        return
    for source in sources:
        destination.drop_table_for_copy(source.schema)
        half = len(source.rows) // 2
        for index, part in enumerate((source.rows[:half], source.rows[half:])):
            for _ in range(2):
                rows = chunk(copy_id, index, source.schema, part)
                destination.write_table_rows(source.schema, rows)
        destination.write_table_rows(source.schema, end_of_copy(copy_id, lsn))


def whole_table(
    copy_id: str, schema: TableSchema, rows: list[dict[str, Any]], lsn: int
) -> TableRows:
    pieces = list(chunk(copy_id, 0, schema, rows).pieces())
    return TableRows(copy_id, pieces, ChunkId(copy_id, 0), replay_from=Lsn(lsn))


@pytest.mark.parametrize(
    ("seed", "holding"), [(0, ""), (1, ""), (2, ""), (3, "amount"), (4, "note"), (5, "amount note")]
)
def test_a_join_gives_back_every_value_after_any_changes(
    folder: Path, seed: int, holding: str
) -> None:
    """Values that an update left out stay, keys change, batches come twice, tables are copied.

    Rows with an odd value in a column that is `holding` them apart are in quarantine.
    """
    random = Random(seed)
    schema = replace(
        KEYED,
        columns=tuple(
            replace(column, quarantine=column.name in holding.split()) for column in _COLUMNS
        ),
    )
    keyed, keyless = SourceTable(schema, ["note"]), SourceTable(KEYLESS, ["note"])
    stream = Transactions()

    def some(count: int) -> None:
        for _ in range(count):
            found = [_statement(random.choice([keyed, keyless]), random) for _ in range(4)]
            if changes := [change for change in found if change is not None]:
                stream.commit(*changes)

    with opened(folder) as destination:
        done = 0
        for round_ in range(3):
            if round_:
                # Old changes are behind the copy's position then, and skipped.
                lsn = stream.changes[-1].lsn + 1
                _copy(destination, [keyed, keyless], f"copy {round_}", lsn, whole=round_ == 2)
                done = len(stream.changes)
            some(4)
            while done < len(stream.changes):
                start = random.randint(max(done - 5, 0), done)
                done = random.randint(done + 1, len(stream.changes))
                destination.write_events(batch(stream.changes[start:done]))
            for source in (keyed, keyless):
                assert _entries(folder, source.schema) == _odd(source)
            apart = [
                row
                for row in keyed.rows
                if any(isinstance(row[name], Unheld) for name in holding.split())
            ]
            there = [row for row in keyed.rows if row not in apart]
            assert _held(folder, KEYED) == _texts(there)
            if apart:
                twin = '_etl_quarantine."public.keyed"'
                assert _held(folder, KEYED, twin) == _texts(apart)
            counts = {"public.keyed": len(apart)} if apart else {}
            assert destination.count_quarantined_rows() == counts


def _texts(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(map(_text, row.values())) for row in rows)


def _text(value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return None if value is None else str(value)


@pytest.mark.parametrize("is_copied", [False, True], ids=["by the stream", "by a copy"])
def test_a_row_in_quarantine_has_labels_that_its_table_got_later(
    folder: Path, is_copied: bool
) -> None:
    """An enum gets a label when a row brings it, and the row reaches the twin, too."""
    amount = replace(_COLUMNS[2], quarantine=True)
    mood = column("mood", 70_000, 5, type=Enum(70_000, "mood", ("sad",)), own_type=True)
    moody = table([_COLUMNS[0], amount, mood], table_id=3, name="moody")
    stream = Transactions()
    rows = [
        {"id": number, "amount": Unheld("NaN"), "mood": label}
        for number, label in enumerate(("sad", "happy", "calm"))
    ]
    with opened(folder) as destination:
        for row in rows:
            if is_copied:
                copy_id = str(row["id"])
                destination.write_table_rows(moody, chunk(copy_id, 0, moody, [row]))
                destination.write_table_rows(moody, end_of_copy(copy_id))
            else:
                destination.write_events(batch(stream.commit(Change(moody, "I", row))))

    twin = _answer(folder, 'SELECT id, mood::VARCHAR FROM _etl_quarantine."public.moody"')
    held = rows[-1:] if is_copied else rows
    assert twin == Counter((row["id"], row["mood"]) for row in held)


def test_a_quarantine_that_was_dropped_by_hand_is_made_again_by_a_copy(folder: Path) -> None:
    keyed = replace(KEYED, columns=tuple(replace(c, quarantine=True) for c in _COLUMNS))
    row = {"id": 1, "at": _TIMES[0], "amount": Unheld("NaN"), "note": "a"}
    for copy_id in ("first", "second"):
        with opened(folder) as destination:
            destination.drop_table_for_copy(keyed)
            destination.write_table_rows(keyed, chunk(copy_id, 0, keyed, [row]))
            destination.write_table_rows(keyed, end_of_copy(copy_id))
        if copy_id == "first":
            with duckdb.connect(str(folder / "test.duckdb")) as connection:
                connection.execute('DROP TABLE _etl_quarantine."public.keyed"')

    assert query_rows(folder, 'SELECT id FROM _etl_quarantine."public.keyed"') == [[1]]


def test_nothing_is_asked_about_odd_values_of_tables_that_have_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Transactions()
    row = {"id": 1, "at": _TIMES[0], "amount": Decimal("1.00"), "note": "a"}
    keyed = replace(KEYED, columns=tuple(replace(c, quarantine=True) for c in _COLUMNS))
    with opened(folder) as destination:
        destination.write_events(batch(stream.commit(Change(keyed, "I", row))))
        monkeypatch.setattr(OddValues, "__getattribute__", _fail)
        monkeypatch.setattr(Quarantine, "__getattribute__", _fail)
        destination.write_events(batch(stream.commit(Change(keyed, "U", row | {"note": "b"}))))
        destination.write_events(batch(stream.commit(truncate(keyed))))


def _fail(*args: Any) -> None:
    raise AssertionError("asked")


@pytest.mark.parametrize("holding", [False, True], ids=["in the table", "in quarantine"])
def test_odd_values_follow_renamed_columns_and_tables(folder: Path, holding: bool) -> None:
    stream = Transactions()
    row = {"id": 1, "at": _TIMES[1], "amount": Unheld("NaN"), "note": Unheld("\\xFF")}
    first, moment, amount, note = (replace(c, quarantine=holding) for c in _COLUMNS)
    keyed = replace(KEYED, columns=(first, moment, amount, note))
    renamed = table(
        [
            replace(first, type_oid=INT8),
            moment,
            replace(amount, name="sum", type_modifier=_MONEY + (2 << 16)),
        ],
        table_id=1,
        name="named",
        snapshot=1500,
    )
    by_id = [replace(moment, primary_key_ordinal=None), replace(amount, name="sum")]
    another_key = table([first, *by_id], table_id=1, name="named", snapshot=9000)
    keyless = table(
        [replace(first, primary_key_ordinal=None), *by_id], table_id=1, name="named", snapshot=9900
    )
    with opened(folder) as destination:
        destination.write_events(batch(stream.commit(Change(keyed, "I", row))))
        entries = "SELECT table_name, key, column_name, text, commit_lsn FROM _etl.odd_values"
        key = ["1", "2024-07-01 12:00:00.5"]
        assert sorted(map(list, query_rows(folder, entries))) == [
            ["keyed", key, "amount", "NaN", 1000],
            ["keyed", key, "note", "\\xFF", 1000],
        ]
        destination.write_events(batch(stream.commit(relation(renamed))))
        assert query_rows(folder, entries) == [["named", key, "sum", "NaN", 1000]]
        destination.write_events(batch(stream.commit(relation(another_key))))
        assert query_rows(folder, entries) == [["named", ["1"], "sum", "NaN", 1000]]
        with pytest.raises(RowsOutdated, match="another key"):
            destination.write_events(batch(stream.commit(relation(keyless))))
        assert query_rows(folder, entries) == [["named", ["1"], "sum", "NaN", 1000]]


def query_rows(folder: Path, sql: str) -> list[list[Any]]:
    return [list(row.values()) for row in query(folder / "test.duckdb", sql).to_pylist()]


def test_the_command_lists_the_values_of_a_table(folder: Path) -> None:
    stream = Transactions()
    row = {"id": 1, "at": _TIMES[1], "amount": Unheld("NaN"), "note": "a"}
    keyless = {"id": 1, "amount": Unheld("NaN"), "note": Unheld("\\xFF")}
    with opened(folder) as destination:
        changes = stream.commit(Change(KEYED, "I", row), Change(KEYLESS, "I", keyless))
        destination.write_events(batch(changes))
        counts = destination.count_odd_values()
    config = folder / "etl.yaml"
    config.write_text(
        "pipeline: shop\nsource: {dsn: postgresql://localhost/shop, publication: shop}\n"
        "destination: {type: duckdb, path: test.duckdb}\n"
    )

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["odd", "-c", str(config), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert counts == {
        "public.keyed": {"amount": 1},
        "public.keyless": {"amount": 1, "note": 1},
    }
    listed = json.loads(call("public.keyed", "--json"))
    assert listed == {
        "counts": {"public.keyed": {"amount": 1}},
        "quarantines": {},
        "values": [
            {
                "table": "public.keyed",
                "key": ["1", "2024-07-01 12:00:00.5"],
                "column": "amount",
                "text": "NaN",
                "position": "0/3E8:0",
                "commit_time": "1970-01-01T00:00:00.001000+00:00",
                "quarantined": False,
            }
        ],
    }
    assert json.loads(call("--json", "--limit", "2"))["counts"] == counts
    assert "2 of 3 values are shown" in call("--limit", "2")
    assert call("public.other").strip() == "Every value is held by its column."
