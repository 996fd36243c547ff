"""The state store behind a pooler that gives each transaction another server connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from etl_dagster.errors import StoreError
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import DataSync, Init, Ready
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.stores.postgres import PostgresStore
from tests.support.database import Database
from tests.support.pooler import needs_pgbouncer, pgbouncer

pytestmark = needs_pgbouncer


@pytest.fixture
def pooled(newest_database: Database) -> Iterator[str]:
    with pgbouncer(newest_database, "transaction") as dsn:
        yield dsn


def test_everything_that_needs_no_session_works_through_a_pooler(pooled: str) -> None:
    store = PostgresStore(pooled, "shop")
    failures: list[BaseException] = []

    def use(table_id: int) -> None:
        try:
            for number in range(20):
                store.update_table_replication_states([(table_id, Ready(Lsn(number)))])
                store.upsert_replication_progress(ApplyWorker(), Lsn(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(table_id,)) for table_id in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert store.get_table_replication_states() == dict.fromkeys(range(4), Ready(Lsn(19)))
    assert store.get_replication_progress(ApplyWorker()) == Lsn(19)
    store.close()


def test_a_lease_through_a_pooler_is_refused_and_the_setting_is_named(pooled: str) -> None:
    """The lock would be on a server connection that others use, and be released by chance."""
    store = PostgresStore(pooled, "shop")

    with pytest.raises(StoreError, match="transaction mode") as refused:
        store.acquire_lease("apply")
    with pytest.raises(StoreError, match="transaction mode"):
        store.check()
    store.close()

    assert "state_store.session_dsn" in refused.value.solution


def test_with_a_direct_connection_leases_are_held_and_changes_noticed(
    pooled: str, newest_database: Database
) -> None:
    store, other = (
        PostgresStore(pooled, "shop", session_dsn=newest_database.dsn) for _ in range(2)
    )
    store.check()
    lease = store.acquire_lease("apply")
    assert lease is not None
    assert other.acquire_lease("apply") is None

    store.update_table_replication_states([(1, Init())])
    store.wait_for_change(0)
    assert store.get_table_replication_state(1) == Init()
    other.transition_table_state(1, Init(), DataSync())
    while store.get_table_replication_state(1) != DataSync():
        store.wait_for_change(600)
    lease.release()
    store.close()
    other.close()


def test_a_pooler_in_session_mode_is_as_good_as_the_server(newest_database: Database) -> None:
    with pgbouncer(newest_database, "session") as dsn:
        store = PostgresStore(dsn, "shop")
        store.check()
        lease = store.acquire_lease("apply")
        assert lease is not None
        lease.release()
        store.close()


def test_settings_are_pinned_for_a_transaction_and_never_left_to_other_clients(
    newest_database: Database,
) -> None:
    name = newest_database.name
    with psycopg.connect(newest_database.server.dsn(), autocommit=True) as admin:
        for setting in ("DateStyle = 'SQL, DMY'", "array_nulls = off", "row_security = on"):
            admin.execute(f"alter database {name} set {setting}")
        admin.execute(f"alter database {name} set default_transaction_read_only = on")
    with pgbouncer(newest_database, "transaction", pool_size=1) as dsn:
        store = PostgresStore(dsn, "shop", session_dsn=newest_database.dsn)
        assert "not there yet" in store.check()
        store.update_table_replication_states([(1, Ready(Lsn(7)))])
        store.upsert_replication_progress(ApplyWorker(), Lsn(9))
        assert store.get_table_replication_states() == {1: Ready(Lsn(7))}
        with psycopg.connect(dsn, autocommit=True) as other:
            settings = [
                other.execute(f"show {setting}").fetchone()
                for setting in ("DateStyle", "array_nulls", "row_security", "synchronous_commit")
            ]
        store.close()
    assert settings == [("SQL, DMY",), ("off",), ("on",), ("off",)]


def test_a_pooler_is_detected_while_other_clients_use_it(
    newest_database: Database,
) -> None:
    """Which server connection comes next depends on which client returned one last."""
    with pgbouncer(newest_database, "transaction", pool_size=3) as dsn:
        done = threading.Event()

        def use() -> None:
            with psycopg.connect(dsn, prepare_threshold=None) as client:
                while not done.is_set():
                    client.execute("select pg_sleep(0.001)")
                    client.commit()

        clients = [threading.Thread(target=use) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            store = PostgresStore(dsn, "shop")
            for _ in range(30):
                with pytest.raises(StoreError, match="transaction mode"):
                    store.acquire_lease("apply")
            store.close()
        finally:
            done.set()
            for client in clients:
                client.join()
