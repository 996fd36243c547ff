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
    """Checks a `Destination`: derive, make the destination, and read its rows.

    >>> class TestMine(DestinationSuite):
    ...     def make_destination(self, folder: Path) -> Destination:
    ...         return JsonLinesDestination(folder)
    ...
    ...     def read_rows(self, destination, schema):
    ...         return destination.rows(schema.name)

    The checks are those of what the destination declares (`Capabilities`). The others are skipped,
    each with a reason that says what it needs:

    - always: copies, values, also with parts, durability, batches, threads, and that the
      destination has the methods of what it offers;
    - `mirror`: rows by key and without one, unchanged TOAST values, and that everything delivered
      again, in order, ends in the same rows;
    - without `mirror`: every change is recorded with operation and position, also when it is
      delivered again (`read_changes`);
    - `transactional`: exactly once, positions, epochs, copies that were given up, and old rows that
      stay until the next copy is complete;
    - `truncate`, `schema_changes`: what their names say;
    - `odd_values`: that a value which its column's type can't hold is kept and follows its row
      (`read_odd_values`);
    - `quarantine`: that a row with such a value is kept apart, whole, until it has none
      (`read_quarantined`);
    - `shared_copies`: that two processes may write the chunks of one copy;
    - each of `modes` besides `mirror`: what it keeps, from `read_rows`, which has the columns that
      the mode adds as well (`etl_dagster.model.modes`);
    - with the members of `KeepsMark`: that the destination can be distinguished from others and
      from older copies of itself.

    Every check has an empty folder of its own, `make_destination`'s argument. Fixtures of a derived
    class work as usual, for example an autouse one that starts a receiver and keeps its address in
    `self`. Leave out a check that can't apply by its name: ``test_... = None``, with the reason
    next to it.
    """
