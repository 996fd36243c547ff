"""What a destination offers beyond the least, and how its callers find out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.destination import (
    FURTHER_CONTRACTS,
    Capabilities,
    ChecksItself,
    CopiesManyTables,
    CountsRows,
    Interruptible,
    lacking,
    offered,
)
from tests.support.forty_lines import MyHttpDestination


class Counting(MemoryDestination):
    def count_rows(self) -> dict[str, int]:
        return {}


class Wrapper:
    """Passes on what it hasn't, as a destination for tests or measurements does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def offers(destination: object) -> set[type]:
    return {contract for contract in FURTHER_CONTRACTS if offered(destination, contract)}


def test_a_minimal_destination_offers_nothing_more() -> None:
    assert offers(MyHttpDestination("http://localhost")) == set()


def test_without_a_declaration_the_methods_determine_what_is_offered() -> None:
    assert Counting.capabilities.offers is None
    assert offers(Counting()) - offers(MemoryDestination()) == {CountsRows}


def test_a_declaration_counts_and_not_the_methods() -> None:
    """Such as of a class that can count, but not with the settings that it was given."""
    counting = Counting()
    counting.capabilities = replace(counting.capabilities, offers=frozenset())  # type: ignore[misc]

    assert offers(counting) == set()


def test_a_declared_but_missing_method_is_never_called() -> None:
    promising = MemoryDestination()
    promising.capabilities = Capabilities(offers=frozenset({CountsRows, CopiesManyTables}))  # type: ignore[misc]

    assert offers(promising) == set()
    assert lacking(promising, CopiesManyTables) == ["drop_tables_for_copy", "write_whole_tables"]


def test_a_wrapper_that_passes_calls_on_offers_what_it_wraps() -> None:
    assert offers(Wrapper(Counting())) == offers(Counting())


@pytest.mark.parametrize(
    ("kind", "least"),
    [(DuckDBDestination, {ChecksItself, CountsRows}), (HttpDestination, {Interruptible})],
)
def test_what_a_built_in_destination_declares_is_what_it_has(kind: type, least: set[type]) -> None:
    declared = kind.capabilities.offers  # type: ignore[attr-defined]

    assert declared == {contract for contract in FURTHER_CONTRACTS if not lacking(kind, contract)}
    assert least <= declared
