"""Everything that is public can be imported by its short name, and type checkers know it."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

import etl_dagster
import etl_dagster.dagster
import etl_dagster.meltano
from tests.unit.test_light_import import loaded_by

_TYPED = Path(__file__).parents[1] / "typed"


@pytest.mark.parametrize("name", etl_dagster.__all__)
def test_each_public_name_leads_to_what_it_names(name: str) -> None:
    value = getattr(etl_dagster, name)
    assert getattr(value, "__name__", name) == name


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        etl_dagster.Pipelines  # noqa: B018  (raises)


def test_completion_in_a_shell_offers_every_public_name() -> None:
    assert set(etl_dagster.__all__) <= set(dir(etl_dagster))


@pytest.mark.parametrize("package", [etl_dagster.dagster, etl_dagster.meltano])
def test_the_integrations_have_short_paths(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert names
    assert all(hasattr(package, name) for name in names)


def test_a_public_name_loads_only_what_it_needs() -> None:
    assert not loaded_by("from etl_dagster import EtlError, Lsn") & {
        "pyarrow",
        "psycopg",
        "dagster",
    }
    assert "dagster" not in loaded_by("from etl_dagster import run, running, DuckDBDestination")


@pytest.mark.parametrize(
    "package", [etl_dagster, etl_dagster.dagster, etl_dagster.meltano], ids=lambda p: p.__name__
)
def test_the_type_checked_files_use_every_public_name(package: ModuleType) -> None:
    imported = {
        alias.name
        for file in _TYPED.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == package.__name__
        for alias in node.names
    }
    assert imported == set(package.__all__)
