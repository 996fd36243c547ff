"""Types of stores and destinations that other packages bring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from etl_dagster.assembly import build_destination, build_store, require_processes
from etl_dagster.cli.checks import check_destination
from etl_dagster.config import PipelineConfig, load_config, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.sensor.supervisor import config_payload
from etl_dagster.kinds import (
    DESTINATIONS,
    STORES,
    built_in_kinds,
    find_config_model,
    find_kind,
    known_kinds,
)
from tests.support.leaks import make_secret

MODULE = """
from pathlib import Path
from typing import Literal
from pydantic import Field, SecretStr
from etl_dagster.config import DestinationConfig, StoreConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.stores.memory import MemoryStore

class PaperConfig(DestinationConfig):
    type: Literal["paper"]
    folder: Path
    sheets: int = Field(ge=1)
    token: SecretStr | None = None

class PaperDestination(MemoryDestination):
    config_model = PaperConfig
    in_process_only = False

    @classmethod
    def from_config(cls, config, pipeline):
        made = cls()
        made.config, made.pipeline = config, pipeline.pipeline
        return made

class ShelfConfig(StoreConfig):
    type: Literal["shelf"]

class ShelfStore:
    config_model = ShelfConfig
    in_process_only = False

    @classmethod
    def from_config(cls, config, pipeline):
        made = cls()
        made._kept = MemoryStore()
        return made

for contract in ("get_table_schema", "get_table_schemas", "load_table_schemas",
        "store_table_schema", "prune_table_schemas", "get_table_replication_state",
        "get_table_replication_states", "load_table_replication_states",
        "update_table_replication_states", "rollback_table_replication_state",
        "get_replication_progress", "upsert_replication_progress",
        "delete_replication_progress", "get_destination_table_metadata",
        "get_applied_destination_table_metadata", "load_destination_tables_metadata",
        "store_destination_table_metadata", "clear_table_copy_state",
        "delete_table_pipeline_state"):
    def method(self, *arguments, name=contract):
        return getattr(self._kept, name)(*arguments)
    setattr(ShelfStore, contract, method)
"""
ENTRY_POINTS = """
[etl_dagster.destinations]
paper = etl_paper:PaperDestination
duckdb = etl_paper:PaperDestination
torn = etl_torn:Nothing
bare = pathlib:Path
[etl_dagster.stores]
shelf = etl_paper:ShelfStore
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lays packages down as an installer would, for this test."""

    def lay(package: str, entry_points: str, module: str = "") -> None:
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (folder / f"{package}.py").write_text(module)
        monkeypatch.syspath_prepend(folder)

    return lay


def raw(**destination: Any) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"database": "shop", "publication": "p"},
        "destination": destination,
    }


def test_an_installed_package_brings_its_destination(install: Install, tmp_path: Path) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)
    path = tmp_path / "etl.yaml"
    path.write_text(json.dumps(raw(type="paper", folder="out", sheets=3, token="${TOKEN}")))

    config = load_config(path, {"TOKEN": make_secret("s3cr3t")})
    destination: Any = build_destination(config)

    assert known_kinds(DESTINATIONS)[-1] == "torn"
    assert (destination.config.folder, destination.config.sheets) == (tmp_path / "out", 3)
    assert destination.pipeline == "shop"
    assert config.state_id("public.a") == "dev:shop-to-paper:public.a"
    assert make_secret("s3cr3t") not in repr(config)


def test_the_replicator_gets_its_settings_too(install: Install) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)
    config = parse_config(
        raw(type="paper", folder="/out", sheets=1, token=make_secret("s3cr3t")), {}
    )

    again: Any = PipelineConfig.model_validate(json.loads(config_payload(config)))

    assert again == config
    assert again.destination.token == SecretStr(make_secret("s3cr3t"))


def test_mistakes_in_its_section_are_reported_with_all_others(install: Install) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)
    wrong = raw(type="paper", sheets=0, colour="red") | {"batch": {"max_rows": "many"}}

    with pytest.raises(ConfigError) as refused:
        parse_config(wrong, {})

    assert {mistake.partition(":")[0] for mistake in refused.value.mistakes} == {
        "destination.folder",
        "destination.sheets",
        "destination.colour",
        "batch.max_rows",
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("papr", r"destination\.type: unknown destination; known are: duckdb, .*bare, paper, torn"),
        ("torn", r"destination\.type: etl_paper, .* can't be imported: ModuleNotFoundError"),
        ("bare", r"destination\.type: pathlib:Path of etl_paper, .* has no 'config_model'"),
        (7, r"destination\.type: must be one of: duckdb"),
    ],
)
def test_a_type_that_cannot_be_used_is_one_clear_mistake(
    install: Install, kind: object, words: str
) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)

    with pytest.raises(ConfigError, match=words):
        parse_config(raw(type=kind), {})


PLUGINS = """
from typing import Literal
from etl_dagster.config import DestinationConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.destination import Capabilities, CountsRows

class Raising(MemoryDestination):
    class config_model(DestinationConfig):
        type: Literal["raising"]
    in_process_only = False
    @classmethod
    def from_config(cls, config, pipeline):
        raise RuntimeError("no way in with s3cr3t")

class Nothing:
    class config_model(DestinationConfig):
        type: Literal["nothing"]
    name = "nothing"
    @classmethod
    def from_config(cls, config, pipeline):
        return cls()
    def write_table_rows(self, schema, rows): ...

class Boasting(MemoryDestination):
    class config_model(DestinationConfig):
        type: Literal["boasting"]
    in_process_only = False
    capabilities = Capabilities(offers=frozenset({CountsRows}))
    @classmethod
    def from_config(cls, config, pipeline):
        return cls()

class Nervous(MemoryDestination):
    class config_model(DestinationConfig):
        type: Literal["nervous"]
    in_process_only = False
    @classmethod
    def from_config(cls, config, pipeline):
        return cls()
    def check(self):
        raise RuntimeError("no way in with s3cr3t")
""".replace("s3cr3t", make_secret("s3cr3t"))
PLUGIN_POINTS = """
[etl_dagster.destinations]
raising = etl_plugins:Raising
nothing = etl_plugins:Nothing
boasting = etl_plugins:Boasting
nervous = etl_plugins:Nervous
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raising", r"destination: raising can't be made of this: RuntimeError$"),
        (
            "nothing",
            r"destination\.type: what nothing makes, a Nothing, lacks capabilities, "
            "drop_table_for_copy, shutdown, startup, write_events$",
        ),
        (
            "boasting",
            r"destination\.type: what boasting makes, a Boasting, lacks count_rows$",
        ),
    ],
)
def test_a_class_that_builds_no_destination_is_a_mistake_with_its_place(
    install: Install, kind: str, words: str
) -> None:
    install("etl_plugins", PLUGIN_POINTS, PLUGINS)
    config = parse_config(raw(type=kind), {})

    with pytest.raises(ConfigError, match=words):
        build_destination(config)
    assert check_destination(config).level == "error"


def test_a_check_that_breaks_is_one_line_of_the_report_and_reveals_no_secret(
    install: Install,
) -> None:
    install("etl_plugins", PLUGIN_POINTS, PLUGINS)

    check = check_destination(parse_config(raw(type="nervous"), {}))

    assert check.level == "error"
    assert check.failure is not None
    assert check.failure.reason == "the check of the destination itself failed: RuntimeError"


def test_two_packages_for_one_type_are_refused_by_name(install: Install) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)
    install("etl_sheet", "[etl_dagster.destinations]\npaper = etl_sheet:Other\n")

    with pytest.raises(ConfigError, match=r"several packages provide .*: etl_paper, etl_sheet"):
        parse_config(raw(type="paper"), {})


def test_a_built_in_type_is_not_replaced(install: Install) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)

    assert find_kind(DESTINATIONS, "duckdb").__name__ == "DuckDBDestination"


def test_a_store_with_the_small_contracts_alone_is_for_one_process(install: Install) -> None:
    install("etl_paper", ENTRY_POINTS, MODULE)
    values = raw(type="paper", folder="/out", sheets=1) | {"state_store": {"type": "shelf"}}
    config = parse_config(values, {})

    lease = build_store(config).acquire_lease("apply")
    assert lease is not None
    with pytest.raises(ConfigError, match="shelf can't coordinate several processes"):
        require_processes(config)


# -- built-in types ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "kind"),
    [(group, kind) for group in (DESTINATIONS, STORES) for kind in built_in_kinds(group)],
)
def test_the_model_read_without_loading_the_class_is_the_model_of_the_class(
    group: str, kind: str
) -> None:
    assert find_config_model(group, kind) is find_kind(group, kind).config_model


@pytest.mark.parametrize(
    ("name", "group", "kind"),
    [
        ("DuckDBDestinationConfig", DESTINATIONS, "duckdb"),
        ("MemoryDestinationConfig", DESTINATIONS, "memory"),
        ("PostgresStoreConfig", STORES, "postgres"),
        ("MemoryStoreConfig", STORES, "memory"),
    ],
)
def test_a_model_is_still_found_at_its_former_place(name: str, group: str, kind: str) -> None:
    import etl_dagster.config

    with pytest.warns(DeprecationWarning, match=rf"{name} is deprecated: import from etl_dagster"):
        found = getattr(etl_dagster.config, name)

    assert found is find_config_model(group, kind)


def test_a_name_that_never_existed_is_an_attribute_error() -> None:
    import etl_dagster.config
    import etl_dagster.destinations.duckdb

    for module in (etl_dagster.config, etl_dagster.destinations.duckdb):
        assert not hasattr(module, "Missing")
