"""Rows that a policy hides are never left out of a copy without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.model.states import Errored, Ready
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import Database
from tests.support.leaks import PASSWORD
from tests.support.pipelines import assert_table_in_step, rows, running

MakeConfig = Callable[..., PipelineConfig]

TABLES = ("hidden", "open", "owned", "parted")


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """It may copy and replicate, owns `owned`, and policies hide rows of other tables from it."""
    name = f"{database.name}_reader"
    database.execute(
        f"create role {name} login replication password '{PASSWORD}'",
        *(f"create table {table} (id int primary key, v text)" for table in TABLES[:3]),
        "create table parted (id int primary key, v text) partition by list (id)",
        "create table parted_1 partition of parted for values in (1)",
        "create table parted_2 partition of parted for values in (2)",
        *(f"insert into {table} values (1, 'a'), (2, 'b')" for table in TABLES),
        *(
            f"alter table {table} enable row level security;"
            f" create policy few on {table} using (id = 1)"
            for table in ("hidden", "owned", "parted_2")
        ),
        f"alter table owned owner to {name}",
        "create publication etl_pub for table hidden, open, owned, parted"
        " with (publish_via_partition_root = true)",
        f"grant select on all tables in schema public to {name}",
        f"grant create on database {database.name} to {name}",
    )
    yield name
    database.execute(f"drop owned by {name} cascade", f"drop role {name}")


def test_the_copy_is_refused_until_the_role_may_see_every_row(
    database: Database, make_config: MakeConfig, role: str
) -> None:
    config = make_config(
        database,
        source={
            "dsn": make_conninfo(database.dsn, user=role, password=PASSWORD),
            "publication": "etl_pub",
        },
    )
    (finding,) = [check for check in run_checks(config) if check.name == "row security"]
    assert "public.hidden, public.parted;" in finding.message
    assert repr(role) in finding.message
    assert f'ALTER ROLE "{role}" BYPASSRLS' in finding.solution

    with closing(build_store(config)) as store, running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        states = {
            table: store.get_table_replication_state(oid)
            for table, oid in database.query(
                "select relname, oid from pg_class where relname = any (%s)", [list(TABLES)]
            )
        }
        assert isinstance(states["open"], Ready)
        assert isinstance(states["owned"], Ready)  # policies don't bind an owner
        for name in ("hidden", "parted"):
            state = states[name]
            assert isinstance(state, Errored)
            assert "row-level security" in state.reason
            assert "BYPASSRLS" in state.solution
        there = rows(
            config,
            "select table_name from duckdb_tables() where not starts_with(table_name, '_etl_copy')"
            " and schema_name = 'public'",
        )
        assert sorted(there) == [("open",), ("owned",)]

        database.execute(f"alter role {role} bypassrls")
        assert not [check for check in run_checks(config) if check.name == "row security"]
        for name in ("hidden", "parted"):
            (oid,) = database.query(f"select '{name}'::regclass::oid")[0]
            store.request_copy(oid)
        database.execute(*(f"insert into {table} values (3, 'c')" for table in TABLES[:3]))
        assert pipeline.wait_until_caught_up(60)
        for table in TABLES:
            assert_table_in_step(database, config, table)


def test_a_policy_for_the_owner_itself_is_noticed(
    database: Database, make_config: MakeConfig, role: str
) -> None:
    """FORCE ROW LEVEL SECURITY binds the owner, too."""
    database.execute("alter table owned force row level security")
    config = make_config(
        database,
        source={
            "dsn": make_conninfo(database.dsn, user=role, password=PASSWORD),
            "publication": "etl_pub",
        },
    )

    (finding,) = [check for check in run_checks(config) if check.name == "row security"]

    assert "public.hidden, public.owned, public.parted;" in finding.message
