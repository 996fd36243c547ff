"""Definitions of a pipeline whose source is away, in a process that has no cache of its own."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import AssetsDefinition

from etl_dagster.config import load_config
from etl_dagster.errors import ConfigError, SourceUnreachable
from etl_dagster.integrations.dagster import build_etl_definitions
from etl_dagster.integrations.dagster.tables.discovery import discover_tables
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.model.states import Init
from etl_dagster.stores.postgres import PostgresStore
from tests.support.dagster_in_process import dagster, write_config
from tests.support.database import Database


def test_tables_are_discovered_from_the_state_store_while_the_source_is_unreachable(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "a new pod's"))
    path = tmp_path / "etl.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "pipeline": "shop",
                "source": {"dsn": "postgresql://u@127.0.0.1:1/d", "publication": "p"},
                "state_store": {"dsn": newest_database.dsn},
                "destination": {"type": "duckdb", "path": "shop.duckdb"},
            }
        )
    )
    config = load_config(path)
    assert discover_tables(config).tables == ()
    # Discovery created nothing.
    assert newest_database.query("SELECT 1 FROM pg_namespace WHERE nspname = 'etl'") == []
    with closing(PostgresStore(newest_database.dsn, "shop")) as store:
        for table_id, name in ((1, "orders"), (2, "gone")):
            columns = (ColumnSchema(name="id", type_oid=20),)
            store.store_table_schema(TableSchema(table_id, "public", name, columns, LSN_ZERO))
        store.update_table_replication_states([(1, Init())])
    found = discover_tables(config)
    assert [table.name for table in found.tables] == ["public.orders"]
    assert isinstance(found.problem, SourceUnreachable)


def test_comments_of_tables_and_columns_are_shown(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount int)",
        "CREATE TABLE plain (id bigint PRIMARY KEY)",
        "COMMENT ON TABLE orders IS 'What customers bought.'",
        "COMMENT ON COLUMN orders.amount IS 'In cents.'",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, plain",
    )
    path = write_config(newest_database.dsn, tmp_path)

    def shown() -> tuple[str, str | None, str]:
        specs = {
            spec.key.path[-1]: spec
            for asset in build_etl_definitions(path).assets or ()
            if isinstance(asset, AssetsDefinition)
            for spec in asset.specs
        }
        columns: Any = specs["orders"].metadata["dagster/column_schema"]
        return (
            specs["orders"].description or "",
            {column.name: column.description for column in columns.columns}["amount"],
            specs["plain"].description or "",
        )

    first = shown()
    assert first[0].startswith("What customers bought.\n\nThe rows of public.orders")
    assert first[1] == "In cents."
    assert first[2].startswith("The rows of public.plain")
    # Also when the source is away.
    write_config("postgresql://u@127.0.0.1:1/d", tmp_path)
    assert shown() == first


def test_an_unset_variable_keeps_the_assets_and_is_named_by_the_tick(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY)",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    monkeypatch.setenv("SHOP_DSN", newest_database.dsn)
    monkeypatch.setenv("SHOP_ROWS", "1000")
    path = write_config("${SHOP_DSN}", tmp_path, batch={"max_rows": "${SHOP_ROWS}"})
    complete = set(build_etl_definitions(path).resolve_all_asset_keys())

    monkeypatch.delenv("SHOP_DSN")
    monkeypatch.delenv("SHOP_ROWS")
    assert set(build_etl_definitions(path).resolve_all_asset_keys()) == complete != set()
    with dagster(path) as ui, pytest.raises(ConfigError) as failed:
        ui.tick()
    assert "SHOP_DSN is not set" in str(failed.value)
    assert "SHOP_ROWS is not set" in str(failed.value)
    assert "SHOP_DSN" not in os.environ
