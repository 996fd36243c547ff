"""Labels of enums that the stream brings before the schema has them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.schemas import SchemaTracker, destination_metadata
from etl_dagster.source.types import TypeCatalog, _Described
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import INT4, Transactions, batch, column, insert, table
from etl_dagster.values.forms import labels_of
from etl_dagster.values.types import Enum

_MOOD = Enum(70_000, "mood", ("sad", "happy"))
_TABLE = table(
    [
        column("n", INT4, 1, key=1),
        column("m", 70_000, 2, type=_MOOD, nested="native", own_type=True),
    ]
)


def catalog(labels: Collection[str]) -> TypeCatalog:
    described = _Described(
        70_000,
        "e",
        "mood",
        None,
        0,
        -1,
        0,
        None,
        None,
        None,
        list(labels),
        list(range(len(labels))),
        None,
        ",",
    )
    return TypeCatalog({70_000: described})


class Source:
    def __init__(self, *labels: str) -> None:
        self.labels = labels
        self.asked = 0
        self.store = MemoryStore()
        self.store.store_table_schema(_TABLE)
        self.store.store_destination_table_metadata(
            _TABLE.id, destination_metadata(_TABLE, "applied")
        )
        self.tracker = SchemaTracker(self.store, lambda _: None, self._fetch)
        self._stream = Transactions()

    def _fetch(self, oids: Collection[int]) -> TypeCatalog:
        self.asked += 1
        return catalog(self.labels)

    def bring(self, *labels: str | None, schema: TableSchema = _TABLE) -> tuple[str, ...] | None:
        """Have the stream bring rows; the labels that their schema has then."""
        rows = [insert(schema, n=number, m=label) for number, label in enumerate(labels)]
        events = self.tracker.with_labels(batch(self._stream.commit(*rows)))
        ((step,),) = events.tables.values()
        return labels_of(step.schema.columns[1])


def test_the_catalog_is_queried_only_for_new_labels() -> None:
    source = Source("sad", "so so", "happy")
    assert source.bring("sad", None, "happy") == ("sad", "happy")
    assert source.asked == 0
    assert source.bring("so so") == source.labels
    assert source.bring("so so") == source.labels
    assert source.asked == 1
    assert not source.tracker.take_outdated()
    # Kept with the version, so that a renamed one is noticed by it.
    kept = source.store.get_table_schema(_TABLE.id, Lsn(2**63))
    assert kept is not None
    assert labels_of(kept.columns[1]) == source.labels
    assert kept == _TABLE


def test_a_label_that_the_catalog_does_not_have_was_renamed() -> None:
    source = Source("sad", "glad", "happy")
    source.bring("so so")
    assert source.tracker.take_outdated() == {_TABLE.id: "a value of an enum was renamed"}


def test_a_version_keeps_the_labels_by_which_a_renamed_one_is_noticed() -> None:
    source = Source("blue", "happy")
    source.bring("blue")
    kept = source.store.get_table_schema(_TABLE.id, Lsn(2**63))
    assert kept is not None
    assert labels_of(kept.columns[1]) == ("sad", "happy")


def test_nothing_is_queried_for_text_columns() -> None:
    source = Source("sad", "so so", "happy")
    columns = tuple(replace(found, own_type=False) for found in _TABLE.columns)
    source.bring("so so", schema=replace(_TABLE, columns=columns))
    assert source.asked == 0
