"""Unchanged values that are fetched from the source take the path of all others."""

from __future__ import annotations

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges
from etl_dagster.runtime.streaming.unchanged import UnchangedValues
from etl_dagster.source.catalog import FetchedValues
from etl_dagster.testing.changes import ORDERS, Transactions, batch, order, update

_LARGE = {"document"}


def test_a_fetched_text_that_is_not_in_its_encoding_is_odd_as_if_it_had_been_sent() -> None:
    rows = {("1",): (b"gr\xc3\xb6\xc3\x9fe\xff\\",), ("2",): (b"a",), ("3",): (None,)}
    unchanged = UnchangedValues(
        lambda schema, columns, keys: FetchedValues(rows, Lsn(5000), "utf-8"),
        copied_until=Lsn(9000),
    )
    changes = [order(number, amount=None) for number in (1, 2, 3)]
    for row in changes:
        del row["document"]
    events = batch(
        Transactions().commit(*(update(ORDERS, unchanged=_LARGE, **row) for row in changes))
    )

    [step] = unchanged.complete(events).tables[ORDERS.id]

    assert isinstance(step, TableChanges)
    assert step.rows["document"].to_pylist() == ["gr\u00f6\u00dfe\\xff\\", "a", None]
    assert step.odd["document"].places.tolist() == [0]
    assert step.odd["document"].texts.to_pylist() == [r"gr\xC3\xB6\xC3\x9Fe\xFF\x5C"]
    assert not step.unchanged
    assert unchanged.fetched_until == Lsn(5000)
