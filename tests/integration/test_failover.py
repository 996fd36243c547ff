"""The pipeline's slot outlives the promotion of a standby, from PostgreSQL 17 on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import SlotOfPrimary, SourceNotPrepared
from etl_dagster.runtime.checking.preflight import require_ready, run_checks
from etl_dagster.source.connection import connect
from etl_dagster.source.slots import apply_slot_name, fetch_slot, require_usable
from tests.integration.test_retry import Refusing
from tests.support.database import Database
from tests.support.fan_outs import Several, several
from tests.support.pipelines import running
from tests.support.standby import Pair, running_pair
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

TABLES = (
    "create table items (id int primary key, n int not null)",
    "insert into items select i, 0 from generate_series(1, 100) i",
    "create publication etl_pub for table items",
)


def failover_slots(database: Database) -> list[tuple[str]]:
    return database.query(
        "select slot_name::text from pg_replication_slots where failover and database = %s",
        [database.name],
    )


def about_failover(config: PipelineConfig) -> list[tuple[str, str]]:
    return [(c.level, c.message) for c in run_checks(config) if c.name == "failover"]


def test_a_slot_is_kept_by_standbys_from_the_next_start_on(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(*TABLES)
    memory = {"type": "memory"}
    plain = make_config(newest_database, destination=memory)
    config = make_config(newest_database, destination=memory, **{"source.failover": True})
    destination = MemoryDestination()
    with running(plain, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert failover_slots(newest_database) == []
    refusing: Any = Refusing(destination)
    with running(config, destination=refusing) as pipeline:
        assert failover_slots(newest_database) == [(apply_slot_name(config.pipeline),)]
        # A table that then waits for `etl-dagster retry` loses no changes either.
        assert pipeline.wait_until_caught_up(60)
        refusing.refused.add("items")
        newest_database.execute("insert into items values (1001, 1)")
        wait_until(lambda: len(failover_slots(newest_database)) == 2)
    ((level, message),) = about_failover(config)
    assert level == "warning"
    assert "synchronized_standby_slots is empty" in message


def test_the_slot_of_several_destinations_is_kept_by_standbys(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(*TABLES)
    config = several(newest_database, tmp_path)
    fixture = Several(newest_database, config)
    with fixture.running():
        pass
    assert failover_slots(newest_database) == []
    source = config.source.model_copy(update={"failover": True})
    fixture.config = config.model_copy(update={"source": source})
    with fixture.running():
        assert failover_slots(newest_database) == [(apply_slot_name(config.pipeline),)]


def test_a_server_without_failover_slots_is_refused(
    database: Database, make_config: MakeConfig
) -> None:
    if database.server.binaries.major >= 17:
        pytest.skip("it knows them")
    database.execute(*TABLES)
    config = make_config(database, **{"source.failover": True})
    with (
        connect(config.source, application_name="test") as connection,
        pytest.raises(SourceNotPrepared, match="needs PostgreSQL 17 or later"),
    ):
        require_ready(connection, config)


# -- with a standby ------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as pair:
        yield pair


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_promotion_loses_and_doubles_nothing(
    pair: Pair, newest_database: Database, make_config: MakeConfig
) -> None:
    with psycopg.connect(pair.primary.dsn(), autocommit=True) as admin:
        admin.execute("create database shop")
    primary, standby = Database(pair.primary, "shop"), Database(pair.standby, "shop")
    primary.execute(*TABLES)
    config = make_config(
        primary,
        destination={"type": "memory"},
        state_store={"type": "postgres", "dsn": newest_database.dsn},
        retry={"max_attempts": 1000},
        **{"source.dsn": pair.dsn("shop"), "source.failover": True, "source.heartbeat_s": 1},
    )
    slot, destination = apply_slot_name(config.pipeline), MemoryDestination()
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert about_failover(config) == [("ok", "changes wait for standby_1")]
        wait_until(lambda: pair.is_synchronized(slot))
        with standby.connect() as connection:
            kept = fetch_slot(connection, slot)
        assert kept is not None
        # Not one of a pipeline that reads the standby.
        with pytest.raises(SlotOfPrimary):
            require_usable(kept)
        for key in range(1001, 1051):
            primary.execute(f"insert into items values ({key}, 1)")
        primary.execute("update items set n = n + 1 where id % 3 = 0")
        primary.execute("delete from items where id < 9")
        primary.disconnect()

        pair.fail_over()

        # What the standby didn't get of it is gone, for the pipeline too.
        standby.execute("insert into items select i, 2 from generate_series(2001, 2050) i")
        assert pipeline.wait_until_caught_up(120)
        found = sorted((row["id"], row["n"]) for row in destination.rows("public.items"))
        assert found == standby.query("select id, n from items order by id")
        standby.disconnect()
