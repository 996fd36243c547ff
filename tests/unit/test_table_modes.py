"""Which mode a table has, and what refuses it before anything is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.config import TableMode as ConfiguredMode
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import ColumnReserved, ConfigError, ModeNeedsKey
from etl_dagster.model.destination import Capabilities
from etl_dagster.model.modes import ADDED_COLUMNS, TableMode
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.runtime.tables.representation import chosen, keep_choices
from etl_dagster.runtime.tables.table_modes import require_keepable
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT8,
    ORDERS,
    TEXT,
    VISITS,
    Transactions,
    batch,
    column,
    insert,
    relation,
)


def config(mode: str = "mirror", **more: Any) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": {"type": "memory"},
            "mode": mode,
        }
        | more,
        {},
    )


class MirrorsOnly(MemoryDestination):
    name = "mirrors"
    capabilities = Capabilities()


def test_the_configuration_names_the_existing_modes() -> None:
    assert ConfiguredMode == TableMode


def test_a_table_may_have_a_mode_of_its_own() -> None:
    settings = config("append", tables={"public.orders": {"mode": "scd2"}})

    assert chosen(ORDERS, settings).mode == "scd2"
    assert chosen(VISITS, settings).mode == "append"
    assert chosen(ORDERS, config()).mode == "mirror"


def test_a_table_keeps_its_mode_until_it_is_copied_again() -> None:
    today = chosen(ORDERS, config("append"))

    assert keep_choices(today, ORDERS).mode == "mirror"
    assert keep_choices(today, None).mode == "append"


# -- the destination ---------------------------------------------------------------------------


def test_a_mode_that_the_destination_does_not_declare_is_refused_with_each_setting() -> None:
    settings = config("append", tables={"public.orders": {"mode": "scd2"}, "public.visits": {}})

    with pytest.raises(ConfigError) as caught:
        Pipeline(settings, MemoryStore(), MirrorsOnly()).start()

    assert caught.value.mistakes == (
        "mode: the destination mirrors does not keep tables in mode append; choose one of: mirror",
        "tables.public.orders.mode: the destination mirrors does not keep tables in mode scd2; "
        "choose one of: mirror",
    )


def test_a_mode_is_refused_where_the_destination_is_built() -> None:
    with pytest.raises(ConfigError, match="http does not keep tables in mode soft_delete"):
        build_destination(
            config("soft_delete", destination={"type": "http", "url": "http://localhost:1"})
        )


# -- quarantine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"mode": "append", "odd_values": "quarantine"}, "odd_values"),
        (
            {"odd_values": "quarantine", "tables": {"public.a": {"mode": "scd2"}}},
            "tables.public.a.odd_values",
        ),
        (
            {"mode": "append", "tables": {"public.a": {"odd_values": "quarantine"}}},
            "tables.public.a.odd_values",
        ),
        (
            {
                "tables": {
                    "public.a": {
                        "mode": "soft_delete",
                        "columns": {"b": {"odd_values": "quarantine"}},
                    }
                }
            },
            "tables.public.a.columns.b.odd_values",
        ),
    ],
)
def test_rows_are_kept_apart_from_mirrors_only(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=f"{place}: quarantine is only for mode mirror"):
        config(**settings)


def test_a_mirror_may_quarantine_rows_alongside_tables_in_other_modes() -> None:
    config(
        "append",
        tables={"public.a": {"mode": "mirror", "odd_values": "quarantine"}, "public.b": {}},
    )


# -- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["soft_delete", "scd2"])
def test_a_mode_that_finds_rows_by_their_key_refuses_a_table_without_one(mode: TableMode) -> None:
    with pytest.raises(ModeNeedsKey, match=rf"public\.visits has no key.*mode: {mode}"):
        require_keepable(replace(VISITS, mode=mode))


@pytest.mark.parametrize("mode", ["mirror", "append"])
def test_other_modes_need_no_key(mode: TableMode) -> None:
    require_keepable(replace(VISITS, mode=mode))


@pytest.mark.parametrize("name", [n for names in ADDED_COLUMNS.values() for n in names])
def test_a_source_column_with_the_name_of_an_added_one_is_refused(name: str) -> None:
    """In whatever case: to some destinations both are one name."""
    columns = (*ORDERS.columns, column(name.upper(), TEXT, 9))
    schema = replace(ORDERS, columns=columns, mode="append")

    with pytest.raises(ColumnReserved, match=f"mode append adds: {name.upper()}"):
        require_keepable(schema)
    require_keepable(replace(schema, mode="mirror"))


def test_a_table_that_can_no_longer_be_kept_stops_and_the_others_continue() -> None:
    keyless = replace(
        ORDERS,
        columns=tuple(replace(c, primary_key_ordinal=None) for c in ORDERS.columns),
        mode="scd2",
    )
    reserved = replace(ORDERS, columns=(*ORDERS.columns, column("_etl_op", INT8, 9)), mode="append")
    for stopped in (keyless, reserved):
        for changes in ([relation(stopped)], [insert(stopped, id=1)]):
            events = batch(Transactions().commit(*changes, insert(VISITS, page="/")))

            kept, failures = OddPolicies(config()).batch(events)

            assert list(kept.tables) == [VISITS.id]
            assert [type(failure) for failure in failures.values()] == [
                ModeNeedsKey if stopped is keyless else ColumnReserved
            ]
        with pytest.raises((ModeNeedsKey, ColumnReserved)):
            OddPolicies(config()).copied(stopped)


def test_a_history_begins_with_the_rows_of_one_moment() -> None:
    """Chunks read at several moments would show values before the changes that brought them."""
    can_resume = {
        mode: PublishedTable(replace(ORDERS, mode=mode), None, 0).can_resume_copy
        for mode in ADDED_COLUMNS
    }

    assert can_resume == {"mirror": True, "soft_delete": True, "append": False, "scd2": False}
