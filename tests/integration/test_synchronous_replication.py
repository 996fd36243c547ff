"""Synchronous replication: our own walsender counts as a standby where the setting is ``*``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]


def set_standbys(server: EmbeddedPostgres, names: str) -> None:
    """Returns once every session that begins from now on sees it."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"alter system set synchronous_standby_names = '{names}'")
        admin.execute("select pg_reload_conf()")
    while True:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            if admin.execute("show synchronous_standby_names").fetchone() == (names,):
                return


@pytest.fixture
def synchronous(database: Database) -> Iterator[Database]:
    """Commits in this database wait for a standby; there is none but our walsenders."""
    database.execute(
        "create table t (id int primary key, v text)",
        "insert into t values (1, 'a')",
        "create publication etl_pub for table t",
        f"alter database {database.name} set synchronous_commit = on",
    )
    set_standbys(database.server, "*")
    yield database
    set_standbys(database.server, "")


def test_the_pipeline_does_not_wait_for_itself(
    synchronous: Database, make_config: MakeConfig
) -> None:
    """The store is in the source: its commits must not wait until our walsender confirms them."""
    config = make_config(synchronous)
    (finding,) = [c for c in run_checks(config) if c.name == "synchronous standbys"]
    assert finding.level == "warning"
    assert finding.message.startswith("'*' in synchronous_standby_names")

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        # A client waits until its change is durable at the destination.
        client = threading.Thread(
            target=synchronous.execute, args=("insert into t values (2, 'b')",), daemon=True
        )
        client.start()
        client.join(60)
        assert not client.is_alive()
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(synchronous, config, "t")
