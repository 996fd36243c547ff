"""What every store and every destination promises, as checks that your own class can run.

Derive a test class from a suite and define a method that makes your object; pytest does the rest:

    from etl_dagster.testing import DestinationSuite

    class TestMine(DestinationSuite):
        def make_destination(self, folder: Path) -> Destination:
            return JsonLinesDestination(folder)

        def read_rows(self, destination: Destination, schema: TableSchema) -> list[dict[str, Any]]:
            return destination.rows(schema.name)

`StoreSuite` is for a store with the three contracts of `PipelineStore`, `CoordinationSuite` for a
store that several processes share, `DestinationSuite` for a destination.
`etl_dagster.testing.changes` makes batches for further tests; `FaultyDestination` makes any
destination fail on purpose. Needs pytest.
"""

# pytest has to know the modules before they are imported. It then rewrites their asserts, so that
# a failure shows the values that were compared.
# ruff: noqa: E402

import pkgutil

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
)

from etl_dagster.testing.coordination import CoordinationSuite
from etl_dagster.testing.destinations import DestinationSuite
from etl_dagster.testing.faulty import FaultyDestination
from etl_dagster.testing.stores import StoreSuite
from etl_dagster.testing.subject import Recorded

__all__ = ["CoordinationSuite", "DestinationSuite", "FaultyDestination", "Recorded", "StoreSuite"]
