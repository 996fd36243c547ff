"""Changes of a table's columns, where they come close together or are undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from tests.support.asking import control_with
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, running

MakeConfig = Callable[..., PipelineConfig]

ITEMS = """
    create table items (id int primary key, size int);
    insert into items values (1, 1);
    create publication etl_pub for table items;
"""


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """A destination whose process dies when a number of batches is durable."""

    def __init__(self, inner: Destination, batches: int) -> None:
        self._inner = inner
        self._left = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_events(self, events: EventBatch) -> None:
        self._inner.write_events(events)
        self._left -= 1
        if not self._left:
            raise Killed


def test_an_undone_change_of_columns_is_followed(
    database: Database, make_config: MakeConfig
) -> None:
    """The stream then describes the table in the words of an earlier time."""
    database.execute(ITEMS)
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for number, change in enumerate(
            [
                "comment on table items is ''",
                "alter table items rename size to weight",
                "alter table items rename weight to size",
                "alter table items add colour int",
                "alter table items drop colour",
            ],
            start=2,
        ):
            database.execute(change, f"insert into items values ({number}, {number})")
            assert pipeline.wait_until_caught_up(60)
            assert_table_in_step(database, config, "items")


def test_columns_that_change_again_before_the_catalog_is_read_keep_their_values(
    database: Database, make_config: MakeConfig
) -> None:
    """When the changes are decoded, the catalog knows nothing of the names in between."""
    database.execute(ITEMS)
    config = make_config(database, **{"batch.max_fill_ms": 2000})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "insert into items values (2, 2)",
            "alter table items add colour int",
            "insert into items values (3, 3, 3)",
            "alter table items rename size to weight",
            "insert into items values (4, 4, 4)",
            "alter table items rename weight to size",
            "insert into items values (5, 5, 5)",
        )
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "items")


@pytest.mark.parametrize("batches", [3, 8, 12])
def test_a_transaction_that_adds_a_column_can_be_interrupted_anywhere(
    newest_database: Database, make_config: MakeConfig, batches: int
) -> None:
    """It is streamed again from its beginning, when the column wasn't there yet."""
    database = newest_database
    database.execute(ITEMS)
    config = make_config(database, **{"batch.max_rows": 100})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    database.execute(
        "begin; insert into items select i, i from generate_series(2, 500) i;"
        "alter table items add colour int;"
        "insert into items select i, i, i from generate_series(501, 1500) i; commit"
    )
    mortal = Mortal(build_destination(config), batches)
    with pytest.raises(Killed), running(config, destination=mortal) as pipeline:
        pipeline.wait_until_caught_up(60)

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    assert_table_in_step(database, config, "items")


def test_a_table_that_is_altered_just_as_its_copy_begins_keeps_the_new_column(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """The slot has changes from before the column was there, and the copy has the column."""
    database = newest_database
    database.execute(ITEMS)
    changes = iter(
        [
            "insert into items values (2, 2)",
            "alter table items add colour int default 5",
        ]
    )

    def change_once_there_is_a_slot(asked: str) -> None:
        if any(name.startswith("etl_dagster_sync") for name in database.slots()):
            database.execute(*changes)

    config = make_config(database)
    make_control = control_with(before=change_once_there_is_a_slot)
    with running(config, make_control=make_control) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into items values (3, 3, 3)")
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "items")


def test_a_table_does_not_take_the_place_of_one_that_was_renamed(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """The stream says nothing of the new name before the next change, so the catalog is asked."""
    database = newest_database
    database.execute(
        "create table items (id int primary key, size int)",
        "insert into items values (1, 1)",
        "create publication etl_pub for all tables",
    )
    config = make_config(database, **{"retry.max_attempts": 1})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    database.execute(
        "alter table items rename to items_before",
        "create table items (id int primary key, size int)",
        "insert into items values (7, 7)",
    )

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert {table.error for table in pipeline.status().tables.values()} == {None}
    for table in ("items", "items_before"):
        assert_table_in_step(database, config, table)
