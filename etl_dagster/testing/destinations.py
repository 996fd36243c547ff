"""What every destination promises."""

from __future__ import annotations

from etl_dagster.testing.changing import ChangeChecks
from etl_dagster.testing.copying import CopyChecks
from etl_dagster.testing.delivering import DeliveryChecks
from etl_dagster.testing.evolving import SchemaChecks
from etl_dagster.testing.keeping import ModeChecks
from etl_dagster.testing.marking import MarkChecks
from etl_dagster.testing.oddities import OddValueChecks
from etl_dagster.testing.offering import OfferChecks
from etl_dagster.testing.parts import PartChecks
from etl_dagster.testing.quarantining import QuarantineChecks
from etl_dagster.testing.sharing import SharedCopyChecks


class DestinationSuite(
    CopyChecks,
    ChangeChecks,
    PartChecks,
    DeliveryChecks,
    SharedCopyChecks,
    OfferChecks,
    SchemaChecks,
    OddValueChecks,
    QuarantineChecks,
    ModeChecks,
    MarkChecks,
):
    """Checks a `Destination`: derive, make it, and say how its rows are read.

    >>> class TestMine(DestinationSuite):
    ...     def make_destination(self, folder: Path) -> Destination:
    ...         return JsonLinesDestination(folder)
    ...
    ...     def read_rows(self, destination, schema):
    ...         return destination.rows(schema.name)

    What is checked is what the destination declares (`Capabilities`); the rest is skipped, and the
    reason says what would have it run:

    - always: copies, values, also with parts, durability, batches, threads, and that it has the
      methods of what it offers;
    - `mirror`: rows by key and without one, unchanged TOAST values, and that everything delivered
      again, in order, ends in the same rows;
    - without `mirror`: every change is recorded with operation and position, also when it is
      delivered again (`read_changes`);
    - `transactional`: exactly once, positions, epochs, copies that were given up, and old rows that
      stay until the next copy is complete;
    - `truncate`, `schema_changes`: what their names say;
    - `odd_values`: that what a column's type can't hold is kept and goes with its row
      (`read_odd_values`);
    - `quarantine`: that a row with such a value is kept apart, whole, until it has none
      (`read_quarantined`);
    - `shared_copies`: that two processes may write the chunks of one copy;
    - each of `modes` besides `mirror`: what it keeps, from `read_rows`, which has the columns that
      the mode adds as well (`etl_dagster.model.modes`);
    - with the members of `KeepsMark`: that it can be told from others and from older copies.

    Every check has an empty folder of its own, `make_destination`'s argument. Fixtures of a derived
    class work as usual, for example an autouse one that starts a receiver and keeps its address in
    `self`. A check that can't apply is left out by its name: ``test_... = None``, with the reason
    next to it.
    """
