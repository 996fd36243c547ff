"""`import etl_dagster` costs next to nothing: everything heavy is imported where it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

HEAVY = {
    "adbc_driver_postgresql",
    "dagster",
    "duckdb",
    "httpx",
    "numpy",
    "psycopg",
    "pyarrow",
    "pydantic",
    "rich",
    "yaml",
}


def modules_after(code: str) -> set[str]:
    """All modules in a fresh interpreter after it has run `code`."""
    report = "import sys; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


def loaded_by(code: str) -> set[str]:
    """The top-level ones among them."""
    return {name.partition(".")[0] for name in modules_after(code)}


@pytest.mark.parametrize("module", ["etl_dagster", "etl_dagster.errors", "etl_dagster.lsn"])
def test_nothing_heavy_is_imported(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


def test_the_vocabulary_needs_no_driver() -> None:
    """Naming states and positions must not need Arrow, a database or Dagster."""
    assert not loaded_by("import etl_dagster.model.states") & (HEAVY - {"pydantic"})


def test_the_command_line_starts_without_the_engine() -> None:
    loaded = loaded_by("import etl_dagster.cli")
    assert not loaded & {"dagster", "duckdb", "numpy", "psycopg", "pyarrow"}


def test_a_configuration_of_any_kind_is_read_without_a_driver() -> None:
    """`--help`, `init` and every process of Dagster read one; most of them open nothing."""
    loaded = loaded_by(
        "from etl_dagster.config import PipelineConfig\n"
        "from etl_dagster.kinds import DESTINATIONS, STORES, built_in_kinds, find_config_model\n"
        "for group in (DESTINATIONS, STORES):\n"
        "    for kind in built_in_kinds(group): find_config_model(group, kind)\n"
        "PipelineConfig(pipeline='a', source={'database': 'd', 'publication': 'p'})"
    )
    assert not loaded & (HEAVY - {"pydantic"})


@pytest.mark.parametrize("package", ["etl_dagster.dagster", "etl_dagster.meltano"])
def test_an_integration_loads_nothing_heavy_before_a_name_of_it_is_used(package: str) -> None:
    assert not loaded_by(f"import {package}") & HEAVY


def test_dagster_loads_no_driver_to_learn_what_definitions_consist_of() -> None:
    """Every process of Dagster imports the definitions: each step, each run, each command."""
    loaded = loaded_by("from etl_dagster.dagster import *\nfrom etl_dagster.meltano import *")
    drivers = {"adbc_driver_manager", "adbc_driver_postgresql", "duckdb", "httpx", "pandas"}
    assert not loaded & (drivers | {"meltano", "numpy", "pyarrow"})
    assert "psycopg" not in loaded_by("from etl_dagster.dagster import *")


#: What ticks, runs and checks work with, and what definitions are made without.
_LATER = (
    "etl_dagster.integrations.dagster.checks.checked_now",
    "etl_dagster.integrations.dagster.copies.step_copy",
    "etl_dagster.integrations.dagster.sensor.supervisor",
    "etl_dagster.integrations.dagster.sensor.tick",
    "etl_dagster.integrations.meltano",
    "etl_dagster.model.coordination",
    "etl_dagster.model.destination",
    "etl_dagster.model.events",
    "etl_dagster.model.stores",
    "etl_dagster.pg",
    "etl_dagster.protocol",
    "etl_dagster.runtime",
)


@pytest.mark.parametrize(
    ("names", "most"),
    [
        ("build_etl_definitions", 80),
        ("build_etl_definitions, EtlPipelineResource, DuckDBDestinationResource", 88),
        ("EtlPipelineComponent", 104),
        ("etl_assets, build_etl_sensor, build_etl_checks, build_sync_job", 80),
    ],
)
def test_a_code_location_loads_what_its_definitions_consist_of(names: str, most: int) -> None:
    """A fifth of the time that `import dagster` takes, in each of Dagster's processes."""
    ours = {
        name
        for name in modules_after(f"from etl_dagster.dagster import {names}")
        if name.startswith("etl_dagster")
    }
    assert not {name for name in ours if name.startswith(_LATER)}
    assert len(ours) <= most


def test_the_replicator_knows_no_dagster() -> None:
    """It runs next to Dagster, not in it: a crash of one doesn't take the other along."""
    assert "dagster" not in loaded_by("import etl_dagster.replicator")


@pytest.mark.skipif(not find_spec("pandas"), reason="pandas is not installed")
def test_copies_and_new_rows_with_ascending_keys_load_no_pandas() -> None:
    """Arrow, the driver and DuckDB import it where it is installed: 50 MB, and a second."""
    loaded = loaded_by(
        "import duckdb, numpy, pyarrow, etl_dagster.source.copy\n"
        "from etl_dagster.destinations.collapse import _ends_of_each\n"
        "from etl_dagster.values.exchange import to_arrow\n"
        "numbers = to_arrow(numpy.array([1, 2, 3]))\n"
        "keys = pyarrow.RecordBatch.from_arrays([numbers], names=['id'])\n"
        "assert _ends_of_each(keys) is None\n"
        "with duckdb.connect() as file:\n"
        "    file.register('keys', keys)\n"
        "    assert file.sql('FROM keys').fetchall() == [(1,), (2,), (3,)]"
    )
    assert "pandas" not in loaded


def test_a_module_that_is_imported_later_is_the_same_for_all() -> None:
    loaded = loaded_by(
        "import etl_dagster.source.copy, pyarrow, sys\n"
        "assert 'pyarrow._dataset' not in sys.modules\n"
        "early = pyarrow.dataset\n"
        "from pyarrow.dataset import Dataset\n"
        "assert early.Dataset is Dataset is pyarrow.dataset.Dataset"
    )
    assert "pyarrow" in loaded
