"""The public suites say what is missing, and what to do about it."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from pathlib import Path
from typing import Any

import pytest

import etl_dagster.testing
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import InvalidState
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing import DestinationSuite, StoreSuite
from etl_dagster.testing.changes import ORDERS, order
from etl_dagster.testing.subject import Subject, require_same_rows
from etl_dagster.testing.waiting import within

MODULES = [module.name for module in pkgutil.iter_modules(etl_dagster.testing.__path__)]


class Hooks(DestinationSuite):
    __test__ = False

    def make_destination(self, folder: Path) -> MemoryDestination:
        return MemoryDestination()

    def read_rows(self, destination: Any, schema: TableSchema) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = destination.rows(schema.name)
        return rows


def subject(destination: Any, folder: Path) -> Subject:
    return Subject(Hooks(), destination, folder)


@pytest.mark.parametrize("name", MODULES)
def test_a_failed_assert_of_any_module_shows_the_values(name: str) -> None:
    """Only asserts that pytest rewrites do."""
    module = importlib.import_module(f"etl_dagster.testing.{name}")

    assert "@pytest_ar" in vars(module)


def test_a_destination_without_a_method_is_told_its_name(tmp_path: Path) -> None:
    class Unfinished:
        name = "unfinished"
        write_table_rows = write_events = capabilities = startup = shutdown = None

    with pytest.raises(AssertionError, match="define drop_table_for_copy in Unfinished"):
        Hooks().test_it_has_the_operations_of_a_destination(subject(Unfinished(), tmp_path))


def test_a_store_without_a_method_is_told_its_name() -> None:
    class Unfinished(MemoryStore):
        clear_table_copy_state = None  # type: ignore[assignment]

    with pytest.raises(AssertionError, match="define clear_table_copy_state in Unfinished"):
        StoreSuite().test_it_has_the_operations_of_all_three_contracts(Unfinished())


def test_a_name_that_a_state_id_cannot_have_is_shown(tmp_path: Path) -> None:
    class Named(MemoryDestination):
        name = "my:own"

    with pytest.raises(AssertionError, match="the name is 'my:own': it must begin with"):
        Hooks().test_its_name_can_be_part_of_a_state_id(subject(Named(), tmp_path))


def test_a_copy_may_be_refused_in_words_of_ones_own(tmp_path: Path) -> None:
    """The contract asks for an `InvalidState`, whatever it says."""

    class InOtherWords(MemoryDestination):
        def write_table_rows(self, *arguments: Any) -> Any:
            try:
                return super().write_table_rows(*arguments)
            except InvalidState:
                raise InvalidState("given up") from None

    Hooks().test_an_abandoned_copy_adds_nothing_to_the_next(subject(InOtherWords(), tmp_path))


def test_what_takes_too_long_is_said_with_what_to_do() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"a wait: not within 0\.01 s\. .*`patience_s`"):
        within(0.01, "a wait", threading.Event().wait)


def test_differences_that_are_not_shown_are_counted() -> None:
    with pytest.raises(AssertionError, match="and 5 more"):
        require_same_rows(ORDERS, [], [order(id) for id in range(25)])
