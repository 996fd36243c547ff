"""The section of a destination of dlt, read without dlt."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from etl_dagster.config import parse_config
from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.errors import ConfigError
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


def test_without_dlt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlt", None)
    with pytest.raises(Exception, match="needs dlt") as raised:
        DltDestination("postgres").startup(MemoryStore())

    assert 'pip install "etl-dagster[dlt]"' in raised.value.solution  # type: ignore[attr-defined]
