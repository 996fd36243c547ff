"""The `dagster.yaml` of the deployment guide makes a Dagster instance with these settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance
from psycopg.conninfo import conninfo_to_dict

from tests.support.database import Database
from tests.support.doc_blocks import block_with


def test_an_instance_has_the_settings_of_the_page(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load(block_with("guides/dagster-deployment.md", "yaml", "storage:"))
    server = conninfo_to_dict(newest_database.dsn)
    for variable, key in {"HOST": "host", "USER": "user", "PASSWORD": "password"}.items():
        monkeypatch.setenv(f"DAGSTER_PG_{variable}", str(server[key]))
    storage = settings["storage"]["postgres"]["postgres_db"]
    storage |= {"port": int(str(server["port"])), "db_name": server["dbname"]}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))

    with DagsterInstance.from_config(str(tmp_path)) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert (pools.default_pool_limit, str(pools.pool_granularity)) == (4, "PoolGranularity.OP")
        assert instance.get_concurrency_config().run_queue_config is not None
        assert instance.run_monitoring_enabled
        assert instance.run_retries_max_retries == 0
        assert not instance.telemetry_enabled
        assert instance.get_settings("sensors")["num_workers"] == 4
        assert instance.event_log_storage.get_pool_limits() == []
    tables = newest_database.query("select 1 from pg_tables where tablename = 'event_logs'")
    assert len(tables) == 1
