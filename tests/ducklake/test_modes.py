"""Every mode keeps the same in a lake as its slow twin in memory does."""

from __future__ import annotations

import pytest

from etl_dagster.model.modes import TableMode
from tests.conformance.test_modes import MEMORY, compare, started
from tests.ducklake.test_conformance import TestCatalogInDuckDB as _Suite

LAKE = _Suite
del _Suite


# Seconds each: the others are in the suite.
@pytest.mark.parametrize("mode", ["scd2"])
def test_random_changes_and_copies_leave_the_same_in_a_lake_as_in_memory(mode: TableMode) -> None:
    """A lake begins a new table where a copy comes after other columns."""
    with started(MEMORY()) as memory, started(LAKE()) as lake:
        compare(lake, memory, mode, 1, alters_first=False)
