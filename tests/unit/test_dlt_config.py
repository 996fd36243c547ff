"""The section of a destination of dlt, read without dlt."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from etl_dagster.assembly import build_destination
from etl_dagster.config import parse_config
from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.errors import ConfigError
from etl_dagster.runtime.tables.table_modes import require_modes
from etl_dagster.stores.memory import MemoryStore


def _config(**destination: Any) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"dsn": "dbname=shop", "publication": "etl_pub"},
        "destination": {"type": "dlt", "destination": "postgres", **destination},
    }


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"dataset": "shop{table}"}, "only letters, digits, _ and"),
        ({"options": {"credentials": "hush"}}, "must not hold credentials"),
        ({"options": {"naming_convention": "direct"}}, "naming_convention: use destination.naming"),
        ({"options": {"destination_name": "dw"}}, "use destination.destination_name"),
        ({"options": {"ref": "duckdb"}}, "use destination.destination$"),
        ({"table_format": "hudi"}, "destination.table_format"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    settings: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(ConfigError, match=mistake) as raised:
        parse_config(_config(**settings), {})

    assert "hush" not in str(raised.value)


def test_values_with_parts_arrive_as_text_unless_json_is_asked_for() -> None:
    config = parse_config(_config(), {})
    assert config.nested_of("public.orders", "tags") == "text"
    assert parse_config(_config() | {"nested": "json"}, {}).nested == "json"

    with pytest.raises(ConfigError, match="set it to json or text"):
        parse_config(_config() | {"nested": "native"}, {})


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, "dlt deletes no rows from plain files"),
        ({"table_format": "iceberg"}, "dlt deletes no rows from Iceberg tables"),
        ({"table_format": "delta"}, None),
    ],
)
def test_a_mirror_in_files_that_dlt_deletes_nothing_from_is_refused_with_the_reason(
    settings: dict[str, Any], refused: str | None
) -> None:
    section = _config(destination="filesystem", **settings)
    config = parse_config(section, {})
    logs = parse_config(section | {"mode": "append"}, {})

    require_modes(logs, build_destination(logs))
    if refused is None:
        require_modes(config, build_destination(config))
        return
    with pytest.raises(ConfigError, match=refused) as raised:
        build_destination(config)
    assert "choose one of: append" in str(raised.value)


def test_without_dlt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlt", None)
    with pytest.raises(Exception, match="needs dlt") as raised:
        DltDestination("postgres").startup(MemoryStore())

    assert 'pip install "etl-dagster[dlt]"' in raised.value.solution  # type: ignore[attr-defined]
