"""Tables that are copied again because their settings changed, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.integrations.dagster.checks.coming import announced
from etl_dagster.integrations.dagster.checks.lag import LagVerdict
from etl_dagster.integrations.dagster.sensor.words import with_coming
from etl_dagster.lsn import Lsn
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Errored, Init, Ready, TableState
from etl_dagster.runtime.tables.coming_copies import coming_copies, request_coming_copies
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS

MEMORY = {"type": "memory"}


def config(
    mode: str = "mirror",
    *,
    destination: Mapping[str, str] = MEMORY,
    **tables: Mapping[str, Any],
) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": destination,
            "mode": mode,
            "tables": {f"public.{name}": settings for name, settings in tables.items()},
        },
        {},
    )


def published(count: int) -> list[TableSchema]:
    """As the catalog describes them, which knows of no modes."""
    return [replace(ORDERS, id=ORDERS.id + n, table_name=f"t{n}") for n in range(count)]


def copied(settings: PipelineConfig, *states: TableState) -> MemoryStore:
    """The store of a pipeline whose tables were copied with these settings."""
    store = MemoryStore()
    for schema, state in zip(published(len(states)), states, strict=True):
        store.store_table_schema(chosen(schema, settings))
        store.update_table_replication_states([(schema.id, state)])
    return store


READY = Ready(Lsn(1))


def test_a_changed_mode_and_shape_are_one_copy_with_both_reasons(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = copied(config("append"), READY, READY, READY)
    settings = config(
        "append",
        t0={"mode": "scd2", "columns": {"note": {"mask": "null"}}},
        t2={"name": "archive.orders", "where": "id > 10", "exclude": ["note"]},
    )

    request_coming_copies(store, settings, published(3))

    assert store.get_table_replication_states() == {
        ORDERS.id: Init(),
        ORDERS.id + 1: READY,
        ORDERS.id + 2: Init(),
    }
    assert [record.getMessage() for record in caplog.records] == [
        "public.t0: mode changed from append to scd2; shape changed (note (mask)): it is copied "
        "again; what is there stays at the destination under another name, and what is kept starts "
        "over with the copy",
        "public.t2: shape changed (the table itself (name, where), note (left out)): it is copied "
        "again",
    ]
    assert coming_copies(settings, store, published(3)) == []


def test_a_table_not_copied_yet_is_not_announced() -> None:
    store = copied(config("append"), Init())

    assert coming_copies(config("scd2"), store, published(2)) == []


@pytest.mark.parametrize(
    ("kept", "becomes"),
    [
        ("mirror", "it is copied again, and the copy replaces what is there"),
        ("soft_delete", "what is there stays at the destination under another name"),
    ],
)
def test_the_announcement_says_what_becomes_of_the_old_rows(kept: TableMode, becomes: str) -> None:
    [coming] = coming_copies(config("scd2"), copied(config(kept), READY), published(1))

    assert becomes in coming.consequence


@pytest.mark.parametrize(
    ("destination", "kept", "becomes"),
    [
        ({"type": "dlt", "destination": "postgres"}, "mirror", "the copy replaces what is there"),
        ({"type": "dlt", "destination": "postgres"}, "append", "stops until you rename or drop"),
        ({"type": "singer", "target": "target-x"}, "mirror", "rename or drop its table before"),
    ],
)
def test_a_destination_that_sets_nothing_aside_says_what_it_does(
    destination: dict[str, str], kept: TableMode, becomes: str
) -> None:
    wanted = "mirror" if kept == "append" else "append"
    settings = config(wanted, destination=destination)
    [coming] = coming_copies(settings, copied(config(kept), READY), published(1))

    assert becomes in coming.consequence


def test_a_table_whose_rows_are_not_copied_keeps_its_mode_and_stops_for_another_shape(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = copied(config("append"), READY, READY)
    settings = config(
        "append",
        t0={"mode": "mirror", "copy": False},
        t1={"exclude": ["note"], "copy": False},
    )

    request_coming_copies(store, settings, published(2))

    assert store.get_table_replication_state(ORDERS.id) == READY
    assert "mode changed from append to mirror: it stays as it is" in caplog.text
    stopped = store.get_table_replication_state(ORDERS.id + 1)
    assert isinstance(stopped, Errored)
    assert "shape changed (note (left out)), and it is not copied again" in stopped.reason


def test_a_check_of_a_table_in_step_warns_of_what_the_next_start_does() -> None:
    in_step = LagVerdict(True, False, "in step", "Changes become durable in time.")

    warned = announced(in_step, "mode changed from mirror to scd2")

    assert (warned.passed, warned.is_severe) == (False, False)
    assert warned.words.startswith("Changes become durable in time.")
    assert "mode changed from mirror to scd2" in warned.words
    assert announced(in_step, None) is in_step


def test_the_line_of_a_tick_names_some_tables_and_counts_the_others() -> None:
    coming = {f"public.t{n}": "shape changed" for n in range(7)}

    line = with_coming("the replicator is starting", coming)

    assert line is not None
    assert line.startswith("the replicator is starting; settings changed since the copy of")
    assert line.endswith("public.t4: shape changed; and 2 more tables")
    assert with_coming(None, {}) is None
