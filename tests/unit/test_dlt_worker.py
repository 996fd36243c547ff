"""A lane's worker answers every write, whatever a load ends with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from etl_dagster.destinations.dlt.changes import Stretches
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.log import Log
from etl_dagster.destinations.dlt.names import DltNames
from etl_dagster.destinations.dlt.places import Place
from etl_dagster.destinations.dlt.worker import ChangesOfTable, LaneWorker
from etl_dagster.errors import DestinationUnreachable, TableWriteFailed
from etl_dagster.testing.changes import ORDERS, Transactions, batch, insert, order


class FailingLane:
    """Keeps nothing but that every table was copied; the first loads fail."""

    name = "etl_shop"
    opened = 1

    def __init__(self, *failures: BaseException) -> None:
        self._failures: Iterator[BaseException] = iter(failures)
        self.loads = 0

    def entry(self, table_id: int) -> TableEntry:
        return TableEntry()

    def require_copied(self, table_id: int) -> None:
        return

    def load(self, *what: Any) -> None:
        self.loads += 1
        failure = next(self._failures, None)
        if failure is not None:
            raise failure

    def forget(self) -> None:
        return


def written(lane: FailingLane) -> BaseException | None:
    """What a write with one change ended with."""
    used = cast(Lane, lane)
    log = Log(cast(Place, None), used)
    stretches = Stretches(DltNames("public").shape, cast(Any, None), log)
    worker = LaneWorker(used, stretches, is_of_stream=True)
    steps = batch(Transactions().commit(insert(ORDERS, **order(1)))).tables[ORDERS.id]
    try:
        return worker.load_changes([ChangesOfTable(ORDERS.id, steps, 1)], epoch=1).exception(30)
    finally:
        worker.close()


def test_a_refused_table_that_no_write_has_fails_them_all() -> None:
    """None would be left out of the next try, so there would be a next try for ever."""
    refused = TableWriteFailed(ORDERS.id + 1, "the destination refused rows of visits")
    lane = FailingLane(*[refused] * 5)

    assert written(lane) is refused
    assert lane.loads == 1


def test_a_panic_in_a_library_is_a_failure_of_the_write() -> None:
    """PyO3 raises one as a BaseException, which no `except Exception` sees."""

    class PanicException(BaseException):
        pass

    failure = written(FailingLane(PanicException("index out of bounds: 'a value'")))

    assert isinstance(failure, DestinationUnreachable)
    assert failure.reason == "dlt's load was ended by PanicException"
    assert failure.retryable


@pytest.mark.parametrize("failures", [[], [DestinationUnreachable("no answer")]])
def test_any_other_end_is_the_end_of_the_write(failures: list[BaseException]) -> None:
    assert written(FailingLane(*failures)) is (failures[0] if failures else None)
