"""What a store answers decides whether it is asked again; and what it keeps is bounded."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from etl_dagster.errors import StoreError, StoreUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import DataSync, Ready
from etl_dagster.pg.connection import Connection
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.stores.postgres.connections import StoreConnections
from etl_dagster.stores.postgres.leases import SessionLeases
from etl_dagster.stores.postgres.rows import PipelineRows
from tests.support.database import Database
from tests.support.leaks import PASSWORD


def test_a_role_that_may_not_log_in_is_refused_at_once(
    newest_database: Database,
) -> None:
    role = f"{newest_database.name}_nologin"
    newest_database.execute(f"create role {role} nologin password '{PASSWORD}'")
    dsn = make_conninfo(newest_database.dsn, user=role, password=PASSWORD)

    with pytest.raises(StoreError, match="not permitted to log in") as refused:
        PostgresStore(dsn, "shop").open()
    newest_database.execute(f"drop role {role}")

    assert not refused.value.retryable
    assert not isinstance(refused.value, StoreUnreachable)


def test_a_full_or_read_only_store_is_waited_for(newest_database: Database) -> None:
    connections = StoreConnections(newest_database.dsn, application_name="test", max_size=1)

    full = connections.translate(psycopg.errors.DiskFull("could not extend file"))
    starting = connections.translate(
        psycopg.OperationalError("connection failed: FATAL:  the database system is starting up")
    )
    untrusted = connections.translate(
        psycopg.OperationalError("connection failed: SSL error: certificate verify failed")
    )

    assert (full.retryable, full.is_starting) == (True, False)
    assert "no room" in full.reason
    assert (starting.retryable, starting.is_starting) == (True, True)
    assert not untrusted.retryable
    assert "certificates" in untrusted.solution


class LosesSessions(StoreConnections):
    """The server ends each session as soon as it is made, before anything is asked over it."""

    def connect_session(self) -> Connection:
        lost, other = super().connect_session(), self.connect()
        with closing(other):
            ended = other.execute(
                "select pg_terminate_backend(%s, 60000)", [lost.info.backend_pid]
            ).fetchone()
        assert ended == (True,)
        return lost


def test_a_session_that_is_lost_before_it_holds_a_lease_is_an_error_that_may_be_retried(
    newest_database: Database,
) -> None:
    connections, losing = (
        kind(newest_database.dsn, application_name="test", max_size=1)
        for kind in (StoreConnections, LosesSessions)
    )
    with closing(PipelineRows("shop", "etl", connections, losing)) as rows:
        leases = SessionLeases(rows)
        for take in (leases.acquire_lease, lambda name: leases.acquire_leases([name, "other"])):
            with pytest.raises(StoreUnreachable, match="the state store can't be reached") as lost:
                take("apply")
            assert lost.value.retryable
    with closing(PipelineRows("shop", "etl", connections, connections)) as rows:
        lease = SessionLeases(rows).acquire_lease("apply")
        assert lease is not None
        lease.release()


def test_a_read_only_store_still_returns_its_states(newest_database: Database) -> None:
    with closing(PostgresStore(newest_database.dsn, "shop")) as store:
        store.update_table_replication_states([(1, Ready(Lsn(7)))])
    role = f"{newest_database.name}_reader"
    newest_database.execute(
        f"create role {role} login password '{PASSWORD}'",
        f"grant usage on schema etl to {role}",
        f"grant select on all tables in schema etl to {role}",
    )
    dsn = make_conninfo(newest_database.dsn, user=role, password=PASSWORD)

    with closing(PostgresStore(dsn, "shop")) as reading:
        assert reading.get_table_replication_states() == {1: Ready(Lsn(7))}
    newest_database.execute(f"drop owned by {role}", f"drop role {role}")


def test_the_history_of_states_is_bounded_and_can_still_be_rolled_back(
    newest_database: Database,
) -> None:
    with closing(PostgresStore(newest_database.dsn, "shop")) as store:
        for number in range(150):
            store.update_table_replication_states([(1, Ready(Lsn(number))), (2, DataSync())])
        (count,) = newest_database.query(
            "select count(*) from etl.table_states where table_id = 1"
        )[0]
        rows = newest_database.query(
            "select count(*) from etl.table_states where table_id = 1 and previous_id is null"
        )
        assert store.get_table_replication_states() == {1: Ready(Lsn(149)), 2: DataSync()}
        assert store.rollback_table_replication_state(1) == Ready(Lsn(148))

    assert count == 100
    assert rows == [(1,)]
