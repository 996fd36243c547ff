"""Every mode keeps the same in a lake as its slow twin in memory does."""

from __future__ import annotations

from random import Random

import pytest

from etl_dagster.model.modes import TableMode
from etl_dagster.testing.changes import content
from etl_dagster.testing.random_changes import random_transactions
from tests.conformance.test_modes import MEMORY, SourceInMode, copy_all, deliver, started
from tests.ducklake.test_conformance import TestCatalogInDuckDB as _Suite

LAKE = _Suite
del _Suite


# Seconds each: the others are in the suite.
@pytest.mark.parametrize("mode", ["scd2"])
def test_random_changes_and_copies_leave_the_same_in_a_lake_as_in_memory(mode: TableMode) -> None:
    random, source = Random(1), SourceInMode(mode)
    with started(MEMORY()) as memory, started(LAKE()) as lake:
        for copy_id in ("copy-1", "copy-2"):
            for subject in (memory, lake):
                copy_all(source, subject, copy_id)
            first = len(source.stream.changes)
            source.run(random_transactions(random))
            changes = source.stream.changes[first:]
            for subject in (memory, lake):
                deliver(Random(1), subject, changes)
        for table in source.tables:
            assert content(lake.kept(table.schema)) == content(memory.kept(table.schema))
