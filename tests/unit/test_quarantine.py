"""Which columns keep rows apart from their table, and what refuses to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import ConfigError, QuarantineNeedsKey
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.tables.odd_policies import OddPolicies, require_quarantine
from etl_dagster.runtime.tables.representation import chosen, held_otherwise, keep_choices
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Transactions,
    Unheld,
    batch,
    column,
    insert,
    relation,
    table,
)
from etl_dagster.values.columns import column_from_json, column_to_json
from etl_dagster.values.python import to_dicts

ACCOUNTS = table(
    [
        column("id", INT4, 1, key=1),
        column("amount", NUMERIC, 2, type_modifier=((12 << 16) | 2) + 4),
        column("at", TIMESTAMPTZ, 3),
        column("token", UUID, 4),
        column("note", TEXT, 5),
    ],
    name="accounts",
)
KEYLESS = replace(
    ACCOUNTS,
    id=7,
    table_name="keyless",
    columns=tuple(replace(column, primary_key_ordinal=None) for column in ACCOUNTS.columns),
)


def config(
    odd_values: str = "null", tables: dict[str, Any] | None = None, **destination: str
) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "pub", "database": "shop"},
            "destination": destination or {"type": "memory"},
            "odd_values": odd_values,
            "tables": tables or {},
        },
        {},
    )


def test_columns_whose_values_are_always_held_keep_no_row_apart() -> None:
    """A text may not be in the database's encoding."""
    holding = chosen(ACCOUNTS, config("quarantine"))

    assert holding.quarantine_columns == ("amount", "at", "note")
    assert chosen(ACCOUNTS, config()).quarantine_columns == ()


def test_a_table_and_a_column_have_a_policy_of_their_own() -> None:
    settings = {
        "public.accounts": {"odd_values": "quarantine", "columns": {"at": {"odd_values": "clamp"}}},
        "public.keyless": {"odd_values": None},
    }
    policies = config("fail", settings)

    assert chosen(ACCOUNTS, policies).quarantine_columns == ("amount", "note")
    assert policies.odd_policy("public.accounts", "at") == "clamp"
    assert policies.odd_policy("public.keyless", "at") == "null"
    assert policies.odd_policy("public.other", "at") == "fail"


def test_a_policy_holds_from_the_next_copy_on() -> None:
    holding = chosen(ACCOUNTS, config("quarantine"))

    assert keep_choices(ACCOUNTS, holding) == holding
    assert keep_choices(holding, ACCOUNTS) == ACCOUNTS
    # The doctor names them.
    assert held_otherwise(ACCOUNTS, ACCOUNTS, config("quarantine")) == ["amount", "at", "note"]
    assert held_otherwise(ACCOUNTS, holding, config()) == ["amount", "at", "note"]
    assert held_otherwise(ACCOUNTS, holding, config("quarantine")) == []


def test_a_choice_survives_the_store_and_earlier_versions_refuse_it() -> None:
    holding = chosen(ACCOUNTS, config("quarantine"))

    kept = json.loads(json.dumps([column_to_json(column) for column in holding.columns]))

    assert tuple(map(column_from_json, kept)) == holding.columns
    assert [column["format"] for column in kept] == [2, 6, 6, 2, 6]


def test_a_quarantined_value_is_null_in_its_row_and_keeps_its_text() -> None:
    holding = chosen(ACCOUNTS, config("quarantine"))
    row = {"id": 1, "amount": Unheld("NaN"), "note": "a"}
    events = batch(Transactions().commit(insert(holding, **row)))

    kept, failures = OddPolicies(config("quarantine")).batch(events)

    assert not failures
    [[changes]] = kept.tables.values()
    assert to_dicts(changes.rows) == [  # type: ignore[union-attr]
        {"id": 1, "amount": None, "at": None, "token": None, "note": "a"}
    ]
    assert changes.odd["amount"].texts.to_pylist() == ["NaN"]  # type: ignore[union-attr]


def test_a_table_that_lost_its_key_stops_before_its_rows_are_mixed_up() -> None:
    policies = OddPolicies(config("quarantine"))
    keyless, other = chosen(KEYLESS, config("quarantine")), chosen(ACCOUNTS, config("quarantine"))
    for changes in ([relation(keyless)], [insert(keyless, id=1)]):
        kept, failures = policies.batch(batch(Transactions().commit(*changes, insert(other, id=1))))

        assert list(kept.tables) == [other.id]
        assert [failure.reason for failure in failures.values()] == [
            "public.keyless has no key, by which a row in quarantine is found again "
            "(odd_values: quarantine, for amount, at, note)"
        ]
    with pytest.raises(QuarantineNeedsKey):
        policies.copied(keyless)


def test_without_a_key_other_policies_are_possible() -> None:
    policies = config("quarantine", {"public.keyless": {"odd_values": "null"}})

    assert OddPolicies(policies).copied(chosen(KEYLESS, policies))


class _Unable(MemoryDestination):
    name = "unable"
    capabilities = replace(MemoryDestination.capabilities, quarantine=False)


def test_a_destination_that_cannot_quarantine_refuses_all_settings_at_once() -> None:
    settings = {
        "public.a": {"odd_values": "quarantine"},
        "public.b": {"columns": {"c": {"odd_values": "quarantine"}, "d": {}}},
    }
    with pytest.raises(ConfigError) as raised:
        require_quarantine(config("quarantine", settings), _Unable())

    places = [mistake.partition(":")[0] for mistake in raised.value.mistakes]
    assert places == [
        "odd_values",
        "tables.public.a.odd_values",
        "tables.public.b.columns.c.odd_values",
    ]
    assert 'unable, which can\'t keep rows apart from their table; choose "null"' in str(
        raised.value
    )
    require_quarantine(config("fail"), _Unable())
    require_quarantine(config("quarantine", settings), MemoryDestination())


@pytest.mark.parametrize(
    ("section", "is_able"),
    [
        ({"type": "memory"}, True),
        ({"type": "duckdb", "path": "x.duckdb"}, True),
        ({"type": "http", "url": "http://localhost:1/"}, False),
    ],
)
def test_only_some_destinations_can_quarantine(section: dict[str, str], is_able: bool) -> None:
    if is_able:
        assert build_destination(config("quarantine", **section)).capabilities.quarantine
        return
    with pytest.raises(ConfigError, match="quarantine is not possible with the destination http"):
        build_destination(config("quarantine", **section))


def test_a_pipeline_is_refused_before_anything_is_read() -> None:
    """The source of this configuration can't be reached."""
    store = MemoryStore()
    with pytest.raises(ConfigError, match="quarantine is not possible"):
        Pipeline(config("quarantine"), store, _Unable()).start()
    assert not store.is_leased("apply")
