"""What every store and every destination promises, as checks that your own class can run.

A test class that derives from a suite and makes your object is all it takes; pytest does the rest:

    from etl_dagster.testing import DestinationSuite

    class TestMine(DestinationSuite):
        def make_destination(self, folder: Path) -> Destination:
            return JsonLinesDestination(folder)

        def read_rows(self, destination: Destination, schema: TableSchema) -> list[dict[str, Any]]:
            return destination.rows(schema.name)

`StoreSuite` is for a store with the three contracts that one's own store implements,
`CoordinationSuite` for one that several processes share, `DestinationSuite` for destinations.
`etl_dagster.testing.changes` makes the batches, for further tests; `FaultyDestination` has any
destination fail on purpose. Needs pytest.
"""

# Imports follow the rewriting of their asserts: failures then show the values that were compared.
# ruff: noqa: E402

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "stores",
            "coordination",
            "subject",
            "copying",
            "changing",
            "delivering",
            "evolving",
            "oddities",
            "quarantining",
            "marking",
            "oddities",
            "offering",
            "parts",
            "destinations",
        )
    )
)

from etl_dagster.testing.coordination import CoordinationSuite
from etl_dagster.testing.destinations import DestinationSuite
from etl_dagster.testing.faulty import FaultyDestination
from etl_dagster.testing.stores import StoreSuite
from etl_dagster.testing.subject import Recorded

__all__ = ["CoordinationSuite", "DestinationSuite", "FaultyDestination", "Recorded", "StoreSuite"]
