"""Settings of role and database change no value, and break no connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_store
from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.positions.mirrored import states_location
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.source.connection import connect
from tests.support.database import Database
from tests.support.hostile import HOSTILE, HOSTILE_17
from tests.support.leaks import PASSWORD
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]

VALUES = """
    select 1 as id, date '2024-02-03' as d, timestamptz '2024-02-03 04:05:06.789+00' as tz,
           interval '1 day 2 hours' as i, 0.1::float8 as f, '\\x00ff'::bytea as b,
           array['a', null, 'NULL'] as a, 'größe €'::text as s,
           'public.odd'::regclass as c
"""
EXPECTED = (
    *(1, "2024-02-03", "2024-02-03 04:05:06.789+00", "1 day 02:00:00", "0.1", "\\x00\\xFF"),
    *(["a", None, "NULL"], "größe €", "public.odd"),
)


@pytest.fixture
def hostile(database: Database) -> Iterator[str]:
    """The DSN of a role that has all of these settings."""
    name = f"{database.name}_hostile"
    database.execute(
        f"create role {name} login superuser password '{PASSWORD}'",
        "create table odd (n text)",
        f"create table values as {VALUES}".replace("table values", 'table "Größe"'),
        'alter table "Größe" add primary key (id), replica identity full',
        "create publication etl_pub for table \"Größe\" where (s <> 'it''s \\ this')",
    )
    with database.connect() as admin:
        newer = HOSTILE_17 if admin.info.server_version >= 170000 else {}
        for setting, value in {**HOSTILE, **newer}.items():
            for target in (f"role {name}", f"database {database.name}"):
                admin.execute(
                    sql.SQL(f"alter {target} set {setting} = {{}}").format(sql.Literal(value))
                )
    yield make_conninfo(database.dsn, user=name, password=PASSWORD)
    with psycopg.connect(database.server.dsn(), autocommit=True) as admin:
        admin.execute(f"alter database {database.name} reset all")
    database.execute(f"reassign owned by {name} to postgres", f"drop role {name}")


def test_settings_of_role_and_database_change_nothing(
    database: Database, make_config: MakeConfig, hostile: str
) -> None:
    config = make_config(database, source={"dsn": hostile, "publication": "etl_pub"})
    assert not [check for check in all_checks(config) if check.level == "error"]
    shown = (
        "select id, d::varchar, tz::timestamp::varchar || '+00', i, f::varchar, b::varchar, a, s,"
        ' c from public."Größe" order by id'
    )

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, shown) == [EXPECTED]
        with connect(config.source, application_name="test") as writer:
            writer.execute(f'insert into public."Größe" {VALUES.replace("1 as id", "2 as id")}')
            # Longer than every timeout above.
            writer.execute("select pg_sleep(1.2)")
            writer.execute('update public."Größe" set id = 3 where id = 2')
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, shown) == [EXPECTED, (3, *EXPECTED[1:])]
        status = pipeline.status()
        assert [table.state for table in status.tables.values()] == ["ready"]

    with closing(build_store(config)) as store:
        lease = store.acquire_lease("test")
        assert lease is not None
        with connect(config.source, application_name="test") as writer:
            writer.execute("select pg_sleep(1.2)")
        assert lease.is_held
        lease.release()


def test_meltano_states_are_read_and_written_the_same(
    database: Database, make_config: MakeConfig, hostile: str
) -> None:
    """A database that is read only on purpose stays so for them."""
    with psycopg.connect(database.server.dsn(), autocommit=True) as admin:
        for target in (f"database {database.name}", f"role {database.name}_hostile"):
            admin.execute(f"alter {target} reset default_transaction_read_only")
    config = make_config(database, source={"dsn": hostile, "publication": "etl_pub"})
    location = states_location(config)
    assert location is not None
    database.execute("create schema etl")
    with closing(StateStorage(location)) as storage:
        storage.set("größe", completed={"singer_state": {"é": 1}})
        with storage.lock("größe"):
            found = storage.get("größe")
            storage.merge("größe", {"singer_state": {"€": 2}})
        assert found is not None
        assert found.completed_object() == {"singer_state": {"é": 1}}
        (newest, *_) = storage.history("größe")
        assert newest.written_at.utcoffset() is not None
        assert storage.list_ids("gr*") == ["größe"]
