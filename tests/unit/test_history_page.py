"""The guide to modes is true: its queries run, and the table of modes is complete."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.kinds import DESTINATIONS, built_in_kinds, find_kind
from etl_dagster.model.modes import ADDED_COLUMNS, MODES, TableMode
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    TEXT,
    Change,
    Transactions,
    batch,
    column,
    delete,
    insert,
    table,
    update,
)

_DOCS = Path(__file__).parents[2] / "docs"
_GUIDE = (_DOCS / "guides" / "history.md").read_text("utf-8")
_QUERIES = re.findall(r"```sql\n(.*?)```", _GUIDE, re.DOTALL)


def _kept(number: int, name: str, mode: TableMode, text: str) -> Any:
    columns = [column("id", INT4, 1, key=1), column(text, TEXT, 2)]
    return replace(table(columns, table_id=number, name=name), mode=mode)


CUSTOMERS = _kept(1, "customers", "soft_delete", "note")
EVENTS = _kept(2, "events", "append", "kind")
ORDERS = _kept(3, "orders", "scd2", "status")
#: What each query of the guide returns, in order.
_ANSWERS: list[list[tuple[Any, ...]]] = [
    [(1, "a")],
    [(3, "moved")],
    [(1, date(2026, 11, 20), 2), (2, date(2026, 11, 20), 2), (3, date(2026, 11, 21), 1)],
    [(1, "paid")],
    [(1, "new"), (2, "new")],
    [(1, "new", "1 day"), (2, "new", "1 day")],
]


def _at(day: int) -> int:
    moment = datetime(2026, 11, day, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return moment // timedelta(microseconds=1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(tmp_path_factory.mktemp("history") / "shop.duckdb")
    destination.startup(MemoryStore())

    def commit(day: int, *changes: Change) -> None:
        # The commit time of a change is the number of its LSN.
        destination.write_events(batch(Transactions(_at(day)).commit(*changes)))

    commit(
        20,
        *(insert(CUSTOMERS, id=id, note="a") for id in (1, 2)),
        insert(EVENTS, id=1, kind="seen"),
        update(EVENTS, id=1, kind="opened"),
        insert(EVENTS, id=2, kind="seen"),
        delete(EVENTS, id=2),
        *(insert(ORDERS, id=id, status="new") for id in (1, 2)),
    )
    commit(
        21,
        delete(CUSTOMERS, id=2),
        update(EVENTS, old={"id": 1}, id=3, kind="moved"),
        update(ORDERS, id=1, status="paid"),
        delete(ORDERS, id=2),
    )
    yield destination
    destination.shutdown()


def test_every_query_of_the_guide_is_run() -> None:
    assert len(_QUERIES) == len(_ANSWERS)


@pytest.mark.parametrize("number", range(len(_ANSWERS)))
def test_a_query_of_the_guide_returns_what_it_says(shop: DuckDBDestination, number: int) -> None:
    found = [tuple(row.values()) for row in shop.query(_QUERIES[number]).to_pylist()]

    assert found == _ANSWERS[number]


def test_the_guide_names_every_column_that_a_mode_adds() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| a .* \| (.*) \|$", _GUIDE, re.MULTILINE))

    assert {mode: tuple(re.findall(r"`(\w+)`", names)) for mode, names in rows.items()} == {
        mode: names for mode, names in ADDED_COLUMNS.items() if names
    }


# -- the matrix --------------------------------------------------------------------------------


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", _DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_matrix_has_every_destination_in_every_mode_as_it_declares() -> None:
    page: str = _script().modes_page()
    lines = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([^|]*) \| ([^|]*) \|", page, re.MULTILINE)

    assert [line[:2] for line in lines] == [
        (kind, mode) for kind in built_in_kinds(DESTINATIONS) for mode in MODES
    ]
    for kind, mode, keeps, each in lines:
        capabilities = find_kind(DESTINATIONS, kind).capabilities
        assert (keeps == "refused at the start") == (mode not in capabilities.modes)
        if mode in capabilities.modes:
            assert each == ("once" if capabilities.transactional else "at least once")
