"""What is specific to the store in Postgres: connections that break, leases, rights."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from etl_dagster.errors import ConfigError, StoreError, StoreUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk, Lease
from etl_dagster.model.schema import TableSchemaRetention
from etl_dagster.model.states import DataSync, Init, Ready
from etl_dagster.model.stores import ApplyWorker, DestinationTableMetadata
from etl_dagster.pg.migrate import script
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.stores.postgres.migrate import STORE
from etl_dagster.testing.changes import ORDERS
from tests.support.database import Database
from tests.support.leaks import PASSWORD, make_secret

SECRET = make_secret("geheim")

HOLD_A_LEASE = """
import sys
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.stores.postgres.migrate import STORE
store = PostgresStore(sys.argv[1], "shop")
lease = store.acquire_lease("apply")
print("held" if lease else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    store = PostgresStore(database.dsn, "shop")
    yield store
    store.close()


def end_connections(database: Database) -> None:
    """As a restart of the server does."""
    database.query(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )


def is_held(lease: Lease) -> bool:
    return lease.is_held


def test_a_killed_process_frees_its_lease(store: PostgresStore, database: Database) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LEASE, database.dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.is_leased("apply")
        assert store.acquire_lease("apply") is None
        holder.kill()
        holder.wait()

    while (lease := store.acquire_lease("apply")) is None:
        pass  # the server needs a moment to notice
    lease.release()
    assert not store.is_leased("apply")


def test_a_lease_whose_connection_is_lost_is_not_held(
    store: PostgresStore, database: Database
) -> None:
    lease = store.acquire_lease("apply")
    assert lease is not None
    assert is_held(lease)
    end_connections(database)

    while is_held(lease):
        pass
    lease.release()
    assert not store.is_leased("apply")


def test_leases_of_two_pipelines_are_different(store: PostgresStore, database: Database) -> None:
    other = PostgresStore(database.dsn, "another")
    first, second = store.acquire_lease("apply"), other.acquire_lease("apply")

    assert first is not None
    assert second is not None
    first.release()
    second.release()
    other.close()


def test_two_pipelines_do_not_see_each_other(store: PostgresStore, database: Database) -> None:
    other = PostgresStore(database.dsn, "another")
    store.update_table_replication_states([(1, Init())])
    store.upsert_replication_progress(ApplyWorker(), Lsn(5))
    store.take_epoch()

    assert other.get_table_replication_states() == {}
    assert other.get_replication_progress(ApplyWorker()) is None
    assert other.current_epoch() == 0
    assert other.reset_for_resync() == 0
    other.close()


def test_operations_survive_the_loss_of_all_connections(
    store: PostgresStore, database: Database
) -> None:
    store.update_table_replication_states([(1, Init())])
    store.wait_for_change(0)
    for number in range(2):
        end_connections(database)
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(number)) == Lsn(number)
    end_connections(database)
    assert store.transition_table_state(1, Init(), DataSync())


def test_changes_made_while_the_listener_was_away_are_seen(
    store: PostgresStore, database: Database
) -> None:
    other = PostgresStore(database.dsn, "shop")
    store.update_table_replication_states([(1, Init())])
    for number in range(2):
        store.wait_for_change(0)
        assert store.get_table_replication_state(1) is not None
        end_connections(database)
        other.update_table_replication_states([(1, Ready(Lsn(number)))])
        while store.get_table_replication_state(1) != Ready(Lsn(number)):
            store.wait_for_change(600)
    other.close()


def test_many_processes_may_create_the_tables_at_once(database: Database) -> None:
    stores = [PostgresStore(database.dsn, f"pipeline_{number}") for number in range(8)]
    failures: list[BaseException] = []

    def use(store: PostgresStore) -> None:
        try:
            assert store.take_epoch() > 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()

    assert failures == []
    assert database.query("SELECT number FROM etl.migrations ORDER BY 1") == [
        (migration.number,) for migration in STORE
    ]


def test_nothing_is_created_twice(store: PostgresStore) -> None:
    assert store.pending_migrations() == list(STORE)
    assert store.migrate() == list(STORE)
    assert store.migrate() == store.pending_migrations() == []


def test_notes_kept_by_a_version_without_notes_are_found(
    database: Database, store: PostgresStore
) -> None:
    """Also what it writes while it still runs, after another process has migrated."""
    before = [migration for migration in STORE if migration.number < 6]
    with database.connect() as admin:
        psycopg.ClientCursor(admin).execute(script(before, "etl", STORE).encode())
    database.execute("INSERT INTO etl.pipelines (name) VALUES ('shop')")
    keep = (
        "INSERT INTO etl.status (pipeline, key, payload) VALUES ('shop', 'paused', '{{\"7\": {}}}')"
    )
    database.execute(keep.format(1))
    assert store.get_note("paused") == {"7": 1}

    store.put_note("paused", {"7": 2})
    assert store.get_note("paused") == {"7": 2}
    database.execute(keep.format(3))
    assert store.get_note("paused") == {"7": 3}


def test_a_store_that_is_newer_than_the_program_is_refused(
    store: PostgresStore, database: Database
) -> None:
    store.migrate()
    database.execute("INSERT INTO etl.migrations (number, name) VALUES (999, 'from the future')")

    with pytest.raises(StoreError, match="999"):
        store.take_epoch()


def test_the_schema_may_have_any_name(database: Database) -> None:
    store = PostgresStore(database.dsn, "shop", schema='my "etl"; --')
    store.update_table_replication_states([(1, Init())])

    assert store.get_table_replication_states() == {1: Init()}
    store.close()


def test_a_user_without_rights_is_told_which_to_grant(
    database: Database, store: PostgresStore
) -> None:
    user = sql.Identifier(f"reader_{database.name}")
    with database.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, PASSWORD))
    dsn = psycopg.conninfo.make_conninfo(
        database.dsn, user=user.as_string(None).strip('"'), password=PASSWORD
    )
    poor = PostgresStore(dsn, "shop")
    try:
        with pytest.raises(StoreError) as refused:
            poor.take_epoch()
        assert "CREATE SCHEMA" in refused.value.solution
        store.take_epoch()
        with pytest.raises(StoreError) as refused:
            poor.take_epoch()
        assert "rant" in refused.value.solution
        assert PASSWORD not in str(refused.value)
    finally:
        poor.close()
        with database.connect() as admin:
            admin.execute(sql.SQL("DROP ROLE {}").format(user))


def test_a_user_who_may_only_read_and_write_rows_is_enough(database: Database) -> None:
    """The grants are those that the documentation names."""
    with database.connect() as admin:
        statements = script(list(STORE), "state", STORE)
        psycopg.ClientCursor(admin).execute(statements.encode())
        with role(admin, f"writer_{database.name}") as user:
            for grant in (
                "GRANT USAGE ON SCHEMA state TO {}",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA state TO {}",
            ):
                admin.execute(sql.SQL(grant).format(sql.Identifier(user)))
            dsn = psycopg.conninfo.make_conninfo(database.dsn, user=user, password=PASSWORD)
            store = PostgresStore(dsn, "shop", schema="state")
            assert store.check() == "schema 'state' is up to date"
            assert store.pending_migrations() == []
            exercise(store)
            store.close()


def test_a_user_who_may_write_some_of_the_tables_is_told_which_are_missing(
    database: Database, store: PostgresStore
) -> None:
    store.migrate()
    with database.connect() as admin, role(admin, f"half_{database.name}") as user:
        for grant in (
            "GRANT USAGE ON SCHEMA etl TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO {}",
            "REVOKE DELETE ON etl.copy_chunks FROM {}",
        ):
            admin.execute(sql.SQL(grant).format(sql.Identifier(user)))
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user=user, password=PASSWORD)
        with pytest.raises(StoreError, match="may not write the state store's copy_chunks"):
            PostgresStore(dsn, "shop").check()


@contextmanager
def role(admin: psycopg.Connection[Any], name: str) -> Iterator[str]:
    """A user without any right, dropped at the end."""
    user = sql.Identifier(name)
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, PASSWORD))
    try:
        yield name
    finally:
        admin.execute(sql.SQL("DROP OWNED BY {}").format(user))
        admin.execute(sql.SQL("DROP ROLE {}").format(user))


def exercise(store: PostgresStore) -> None:
    """Every operation that writes."""
    store.take_epoch()
    lease = store.acquire_lease("apply")
    assert lease is not None
    store.update_table_replication_states([(1, Init())])
    assert store.transition_table_state(1, Init(), DataSync())
    store.store_table_schema(ORDERS)
    store.store_table_schema(ORDERS.at(Lsn(5)))
    assert store.prune_table_schemas({ORDERS.id: TableSchemaRetention(Lsn(9))}) == 1
    store.store_destination_table_metadata(
        1, DestinationTableMetadata("orders", Lsn(5), "applied", (True,))
    )
    plan = CopyPlan("copy-1", (CopyChunk(0, 1),), {}, Lsn(1), datetime.now(UTC))
    store.store_copy_plan(1, plan)
    store.finish_chunk(1, "copy-1", FinishedChunk(0, 1, 1, Lsn(2)))
    store.upsert_replication_progress(ApplyWorker(), Lsn(3))
    store.publish_status("apply", {})
    store.put_note("members", {})
    assert store.get_note("members") == {}
    store.wait_for_change(0)
    assert store.rollback_table_replication_state(1) == Init()
    store.request_copy(1)
    store.clear_table_copy_state(1)
    store.reset_for_resync()
    store.delete_replication_progress(ApplyWorker())
    store.delete_table_pipeline_state(1)
    lease.release()


def test_a_wrong_password_is_refused_at_once_and_not_shown(database: Database) -> None:
    dsn = psycopg.conninfo.make_conninfo(database.dsn, password=SECRET)
    with pytest.raises(StoreError) as refused:
        PostgresStore(dsn, "shop").take_epoch()

    assert not isinstance(refused.value, StoreUnreachable)
    assert SECRET not in str(refused.value) + repr(refused.value) + refused.value.solution


def test_a_dsn_that_cannot_be_read_is_not_shown() -> None:
    dsn = f"postgresql://user:{quote(SECRET)}@host:port:port/x?nonsense=1"
    with pytest.raises(ConfigError) as refused:
        PostgresStore(dsn, "shop")

    assert "state_store.dsn" in str(refused.value)
    assert SECRET not in str(refused.value) + repr(refused.value.__cause__)


def test_an_unreachable_server_may_be_retried(database: Database) -> None:
    dsn = psycopg.conninfo.make_conninfo(database.dsn, host="127.0.0.1", port=1)
    with pytest.raises(StoreUnreachable) as refused:
        PostgresStore(dsn, "shop").take_epoch()

    assert refused.value.retryable


def test_a_closed_store_leaves_no_connection_and_can_be_used_again(
    store: PostgresStore, database: Database
) -> None:
    def connections() -> list[tuple[int]]:
        return database.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'etl-dagster-store'"
        )

    store.wait_for_change(0)
    before = store.take_epoch()
    assert connections()
    store.close()
    while connections():
        pass  # a backend needs a moment to leave
    assert store.take_epoch() > before
