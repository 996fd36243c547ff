"""Pipelines made of resources, and how their configuration reaches the replicator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dagster import EnvVar

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster import (
    DuckDBDestinationResource,
    EtlConfigFile,
    EtlPipeline,
    PostgresSourceResource,
    PostgresStateStoreResource,
    build_etl_definitions,
)
from etl_dagster.integrations.dagster.discovery import discover_tables
from etl_dagster.integrations.dagster.supervisor import config_payload

PASSWORD = "p${HOME}$$'\"\\"


def pipeline(**source: Any) -> EtlPipeline:
    return EtlPipeline(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop", **source),
        state_store=PostgresStateStoreResource(schema_name="state"),
        destination=DuckDBDestinationResource(path="shop.duckdb"),
        settings={"copy": {"max_table_sync_workers": 2}},
    )


def test_resources_make_the_configuration_that_a_file_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    resource = pipeline(password=EnvVar("SHOP_PASSWORD"))
    with resource.process_config_and_initialize_cm() as ready:
        config = ready.load_config()
    assert config.source.password.get_secret_value() == PASSWORD
    assert config.state_store.schema_name == "state"
    assert config.copy_tables.max_table_sync_workers == 2


def test_the_replicator_gets_the_same_configuration_secrets_included() -> None:
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"database": "shop", "publication": "p", "password": "a$$b${X}"},
            "state_store": {"schema": "state", "dsn": "postgresql://u:secret@h/d"},
            "destination": {"type": "duckdb", "path": "/tmp/shop.duckdb"},
            "tables": {"public.orders": {"copy": False}},
        },
        {"X": "c"},
    )
    again = PipelineConfig.model_validate(json.loads(config_payload(config)))
    assert again == config
    assert again.source.password is not None
    assert again.source.password.get_secret_value() == "a$bc"


def test_memory_is_refused_because_dagster_uses_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(
        "pipeline: shop\n"
        "source: {database: shop, publication: p}\n"
        "state_store: {type: memory}\n"
        "destination: {type: memory}\n"
    )
    with pytest.raises(ConfigError) as refused:
        build_etl_definitions(path)
    assert len(refused.value.mistakes) == 2


def test_definitions_load_without_the_source_and_remember_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor must tick to say what is wrong, and runs that have begun must go on."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://u@127.0.0.1:1/d", "publication": "p"},
            "destination": {"type": "duckdb", "path": "x.duckdb"},
        },
        {},
    )
    found = discover_tables(config)
    assert found.tables == ()
    assert found.problem is not None
    known = tmp_path / "etl_dagster" / "shop.tables.json"
    known.parent.mkdir()
    known.write_text(
        json.dumps(
            [
                {
                    "id": 7,
                    "schema_name": "public",
                    "table_name": "orders",
                    "replica_identity": "d",
                    "publication": "p",
                    "columns": [{"name": "id", "type_oid": 20, "of_a_later_version": 1}],
                }
            ]
        )
    )
    assert [table.name for table in discover_tables(config).tables] == ["public.orders"]
    known.write_text("{")
    assert discover_tables(config).tables == ()


def test_a_configuration_file_is_read_at_each_use(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    text = "pipeline: {}\nsource: {{database: d, publication: p}}\n" + (
        "destination: {{type: duckdb, path: x}}\n"
    )
    resource = EtlConfigFile(path=str(path))
    for name in ("one", "two"):
        path.write_text(text.format(name))
        assert resource.load_config().pipeline == name
