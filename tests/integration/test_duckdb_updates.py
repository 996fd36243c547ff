"""Updates in the DuckDB file that leave values out, since these are stored out of line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.errors import BatchTooLarge
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    BYTEA,
    INT4,
    INT8,
    JSONB,
    NUMERIC,
    TEXT,
    Change,
    Row,
    SourceTable,
    Transactions,
    batch,
    chunk,
    column,
    content,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    truncate,
    update,
)

TEXT_ARRAY = 1009
LARGE = ("document", "payload", "picture", "tags")


def products(*more: str) -> TableSchema:
    """Four columns may be stored out of line."""
    return table(
        [
            column("sku", TEXT, 1, key=2),
            column("region", INT4, 2, key=1),
            column("price", NUMERIC, 3, type_modifier=((12 << 16) | 2) + 4),
            column("document", TEXT, 4),
            column("payload", JSONB, 5),
            column("picture", BYTEA, 6),
            column("tags", TEXT_ARRAY, 7),
            *(column(name, INT8, 8 + place) for place, name in enumerate(more)),
        ],
        name="products",
    )


PRODUCTS = products()
DOCUMENTS = table([column("id", INT8, 1, key=1), column("n", INT4, 2), column("document", TEXT, 3)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path)
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def rows_of(path: Path, schema: TableSchema) -> list[Row]:
    rows: list[Row] = query(path, f'FROM public."{schema.table_name}"').to_pylist()
    return rows


def _some_changes(source: SourceTable, random: Random, count: int) -> list[Change]:
    def values(names: list[str]) -> Row:
        word = random.choice("abc") * random.randint(1, 3)
        made: Row = {
            "price": None,
            "document": random.choice([None, word]),
            "payload": f'{{"word": "{word}"}}',
            "picture": word.encode(),
            "tags": random.choice(["{" + word + ",NULL}", "{}"]),
        }
        return {name: made.get(name, random.randrange(9)) for name in names}

    others = [name for name in source.schema.column_names if name not in ("sku", "region")]
    found: list[Change | None] = []
    for _ in range(count):
        key = {"sku": random.choice("xyz"), "region": random.randrange(4)}
        kind = random.choice("IIIUUUUUUUUKKKDD") if random.random() < 0.98 else "T"
        if kind == "I" or not source.rows:
            found.append(source.insert(key | values(others)))
        elif kind == "T":
            found.append(source.truncate())
        elif kind == "D":
            found.append(source.delete(random.randrange(len(source.rows))))
        else:
            named = values([name for name in others if random.random() < 0.4])
            moved = key if kind == "K" else {}
            found.append(source.update(random.randrange(len(source.rows)), named | moved))
    return [change for change in found if change is not None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("more", [(), ("RowID",)], ids=["changed in place", "read and written"])
def test_random_changes_leave_what_the_source_has(
    destination: DuckDBDestination, path: Path, seed: int, more: tuple[str, ...]
) -> None:
    """Across batches, some of which are delivered again from an earlier position."""
    random = Random(seed)
    source, stream = SourceTable(products(*more), LARGE), Transactions()
    done = 0
    for number in range(24):
        for _ in range(random.randint(1, 4)):
            stream.commit(*_some_changes(source, random, random.randint(1, 12)))
        start = done if random.random() < 0.7 else random.randint(0, done)
        stop = len(stream.changes)
        if stop > start:
            destination.write_events(batch(stream.changes[start:stop]))
            done = stop
        if number % 6 == 5:
            assert content(rows_of(path, source.schema)) == content(source.rows)


def test_many_combinations_of_columns_that_were_not_sent(
    destination: DuckDBDestination, path: Path
) -> None:
    """There are more than the destination makes a statement of its own for."""
    schema = table(
        [column("id", INT8, 1, key=1), *(column(f"c{n}", TEXT, 2 + n) for n in range(6))],
    )
    source, stream = SourceTable(schema, schema.column_names[1:]), Transactions()
    for number in range(64):
        source.insert({"id": number} | {f"c{n}": f"old {number}" for n in range(6)})
    destination.write_table_rows(schema, chunk("copy", 0, schema, source.rows))
    destination.write_table_rows(schema, end_of_copy("copy"))
    changes = [
        source.update(number, {f"c{n}": f"new {number}" for n in range(6) if number >> n & 1})
        for number in range(64)
    ]

    destination.write_events(batch(stream.commit(*(change for change in changes if change))))

    assert content(rows_of(path, schema)) == content(source.rows)


def test_a_row_that_two_chunks_brought_is_there_once(
    destination: DuckDBDestination, path: Path
) -> None:
    both = {"id": 1, "n": 0, "document": "large"}
    destination.write_table_rows(DOCUMENTS, chunk("copy", 0, DOCUMENTS, [both]))
    destination.write_table_rows(DOCUMENTS, chunk("copy", 1, DOCUMENTS, [both]))
    destination.write_table_rows(DOCUMENTS, end_of_copy("copy"))

    changes = Transactions().commit(update(DOCUMENTS, unchanged=["document"], id=1, n=1))
    destination.write_events(batch(changes))

    assert rows_of(path, DOCUMENTS) == [{"id": 1, "n": 1, "document": "large"}]


def test_a_missing_row_is_added_with_what_was_sent(
    destination: DuckDBDestination, path: Path
) -> None:
    destination.write_table_rows(DOCUMENTS, end_of_copy("copy"))

    changes = Transactions().commit(
        update(DOCUMENTS, unchanged=["document"], id=1, n=1),
        update(DOCUMENTS, old={"id": 2}, unchanged=["document"], id=3, n=3),
    )
    destination.write_events(batch(changes))

    assert content(rows_of(path, DOCUMENTS)) == content(
        [{"id": 1, "n": 1, "document": None}, {"id": 3, "n": 3, "document": None}]
    )


def test_rows_that_exchange_their_keys_keep_their_values(
    destination: DuckDBDestination, path: Path
) -> None:
    stream = Transactions()
    rows = [{"id": number, "n": number, "document": f"of {number}"} for number in (1, 2)]
    destination.write_events(batch(stream.commit(*(insert(DOCUMENTS, **row) for row in rows))))

    moves = [(1, 3, 1), (2, 1, 2), (3, 2, 1)]
    changes = [
        update(DOCUMENTS, old={"id": old}, unchanged=["document"], id=new, n=n)
        for old, new, n in moves
    ]
    destination.write_events(batch(stream.commit(*changes)))

    assert content(rows_of(path, DOCUMENTS)) == content(
        [{"id": 2, "n": 1, "document": "of 1"}, {"id": 1, "n": 2, "document": "of 2"}]
    )


def test_a_key_that_its_type_cannot_hold_is_found_as_null(
    destination: DuckDBDestination, path: Path
) -> None:
    """The NaN of a numeric(12,2) is null at the destination."""
    prices = table(
        [
            column("price", NUMERIC, 1, key=1, type_modifier=((12 << 16) | 2) + 4),
            column("n", INT4, 2),
            column("document", TEXT, 3),
        ]
    )
    stream = Transactions()
    destination.write_events(
        batch(stream.commit(insert(prices, price=None, n=1, document="large")))
    )

    changes = stream.commit(update(prices, unchanged=["document"], price=None, n=2))
    destination.write_events(batch(changes))

    assert rows_of(path, prices) == [{"price": None, "n": 2, "document": "large"}]


def test_values_that_were_not_sent_survive_schema_changes_in_the_same_batch(
    destination: DuckDBDestination, path: Path
) -> None:
    def version(snapshot: int, *more: Any) -> TableSchema:
        return replace(DOCUMENTS, columns=(*DOCUMENTS.columns, *more), snapshot_id=Lsn(snapshot))

    added, wider = version(1, column("k", INT4, 4)), version(2, column("k", INT8, 4))
    stream = Transactions()
    rows = [{"id": number, "n": 0, "document": f"of {number}"} for number in range(5)]
    destination.write_events(batch(stream.commit(*(insert(DOCUMENTS, **row) for row in rows))))

    destination.write_events(
        batch(
            stream.commit(
                update(DOCUMENTS, unchanged=["document"], id=0, n=1),
                insert(DOCUMENTS, id=5, n=5, document="of 5"),
                relation(added),
                update(added, unchanged=["document"], id=0, n=2, k=2),
                update(added, unchanged=["document"], id=5, n=6, k=6),
                relation(wider),
                update(wider, unchanged=["document"], id=0, n=3, k=2**40),
                delete(wider, id=1),
            )
        )
    )

    found = {row["id"]: row for row in rows_of(path, DOCUMENTS)}
    assert found.keys() == {0, 2, 3, 4, 5}
    assert found[0] == {"id": 0, "n": 3, "document": "of 0", "k": 2**40}
    assert found[5] == {"id": 5, "n": 6, "document": "of 5", "k": 6}
    assert found[2] == {"id": 2, "n": 0, "document": "of 2", "k": None}


def test_a_truncate_between_updates_leaves_only_what_came_after(
    destination: DuckDBDestination, path: Path
) -> None:
    stream = Transactions()
    destination.write_events(batch(stream.commit(insert(DOCUMENTS, id=1, n=1, document="before"))))
    destination.write_events(
        batch(
            stream.commit(
                update(DOCUMENTS, unchanged=["document"], id=1, n=2),
                truncate(DOCUMENTS),
                insert(DOCUMENTS, id=1, n=3, document="after"),
            )
        )
    )
    destination.write_events(
        batch(stream.commit(update(DOCUMENTS, unchanged=["document"], id=1, n=4)))
    )

    assert rows_of(path, DOCUMENTS) == [{"id": 1, "n": 4, "document": "after"}]


def test_large_values_that_were_not_sent_are_neither_read_nor_written(
    path: Path,
) -> None:
    """They are three times as large as the memory that DuckDB may use."""
    destination = DuckDBDestination(path, memory_limit="64MB")
    destination.startup(MemoryStore())
    destination.write_table_rows(DOCUMENTS, end_of_copy("copy"))
    destination.shutdown()
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "INSERT INTO public.orders "
            "SELECT i, 0, repeat(md5(i::VARCHAR), 20000) FROM range(300) numbers(i)"
        )
    size = path.stat().st_size
    changes = [update(DOCUMENTS, unchanged=["document"], id=n, n=1) for n in range(300)]

    destination.write_events(batch(Transactions().commit(*changes)))
    destination.shutdown()

    [row] = query(
        path, "SELECT sum(n) AS n, min(length(document)) AS length FROM public.orders"
    ).to_pylist()
    assert (row["n"], row["length"]) == (300, 640_000)
    assert path.stat().st_size < size + 20 * 1024**2


def test_a_value_that_was_not_sent_is_looked_up_by_the_key_of_its_own_row() -> None:
    """The mask of unknown values and the places to look them up have one element a row."""
    from etl_dagster.destinations.collapse import collapse
    from etl_dagster.model.events import TableChanges

    [[changes]] = batch(
        Transactions().commit(
            update(DOCUMENTS, unchanged=["document"], id=2, n=1),
            update(DOCUMENTS, old={"id": 1}, unchanged=["document"], id=3, n=2),
        )
    ).tables.values()
    assert isinstance(changes, TableChanges)
    collapsed = collapse(changes, ("id",))
    assert collapsed.lookup_places is not None

    keys = np.array(collapsed.removed["id"])
    assert dict(
        zip(collapsed.rows["id"].to_pylist(), keys[collapsed.lookup_places].tolist(), strict=True)
    ) == {2: 2, 3: 1}


def test_changes_that_need_more_memory_than_available_are_refused_as_too_large(
    path: Path,
) -> None:
    """So that they are written in halves. Here a column hides DuckDB's row id."""
    schema = table(
        [column("id", INT8, 1, key=1), column("rowid", INT8, 2), column("document", TEXT, 3)]
    )
    destination = DuckDBDestination(path, memory_limit="64MB")
    destination.startup(MemoryStore())
    destination.write_table_rows(schema, end_of_copy("copy"))
    destination.shutdown()
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "INSERT INTO public.orders "
            "SELECT i, 0, repeat(md5(i::VARCHAR), 20000) FROM range(300) numbers(i)"
        )
    changes = Transactions().commit(
        *(update(schema, unchanged=["document"], id=n, rowid=1) for n in range(300))
    )

    with pytest.raises(BatchTooLarge):
        destination.write_events(batch(changes))
    destination.shutdown()
