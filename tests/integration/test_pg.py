"""How a Postgres is reached, on a real one: failures, the pool, notifications, migrations."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_dagster.config import SourceConfig
from etl_dagster.errors import EtlError, SourceAuthenticationFailed, StoreError
from etl_dagster.pg import migrate
from etl_dagster.pg.advisory import lock_key
from etl_dagster.pg.blocking import fetch_blockers
from etl_dagster.pg.cancelling import answered_within
from etl_dagster.pg.connection import Connection, connect_shared
from etl_dagster.pg.dsn import Dsn
from etl_dagster.pg.failures import Failure, failure_of
from etl_dagster.pg.listener import Subscription
from etl_dagster.pg.pool import Pool
from etl_dagster.source.copy import CopyConnection
from etl_dagster.stores.postgres.migrate import STORE
from tests.support.database import Database
from tests.support.leaks import PASSWORD, make_secret
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

SECRET = make_secret("geheim")


def test_real_messages_have_the_kinds_of_the_table(newest_database: Database) -> None:
    """The table lists libpq's texts; these are the ones that this version really gives."""
    dsn, name = newest_database.dsn, newest_database.name
    newest_database.execute(f"create role {name}_nologin nologin password '{PASSWORD}'")
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    examples: list[tuple[dict[str, str | int], Failure]] = [
        ({"port": port}, Failure.LOST),
        ({"password": SECRET}, Failure.REFUSED),
        ({"user": f"{name}_nologin", "password": PASSWORD}, Failure.REFUSED),
        ({"user": f"{name}_missing"}, Failure.REFUSED),
        ({"dbname": f"{name}_missing"}, Failure.DATABASE_MISSING),
        ({"options": "-c no_such=1"}, Failure.OPTIONS),
        ({"options": "-c DateStyle=bogus"}, Failure.OPTIONS),
        ({"sslmode": "bogus"}, Failure.TLS),
        ({"sslmode": "verify-full", "sslrootcert": "/no/such/file"}, Failure.TLS),
    ]
    for parameters, expected in examples:
        with pytest.raises(psycopg.Error) as failed:
            psycopg.connect(make_conninfo(dsn, connect_timeout=5, **parameters))
        assert failure_of(failed.value) is expected, f"{parameters}: {failed.value}"
    newest_database.execute(f"drop role {name}_nologin")


def test_a_refused_copy_is_not_mistaken_for_an_unreachable_server(
    newest_database: Database,
) -> None:
    """ADBC calls every failure to connect operational, and gives no SQLSTATE for it."""
    dsn = make_conninfo(newest_database.dsn, password=SECRET)
    config = SourceConfig.model_validate({"dsn": dsn, "publication": "p"})
    with pytest.raises(SourceAuthenticationFailed, match="no connection for a copy") as refused:
        CopyConnection(config, application_name="test")
    assert not refused.value.retryable
    assert SECRET not in refused.value.reason


# -- the pool ----------------------------------------------------------------------------------


class Slept(list[float]):
    """The pauses that were asked for; none is made."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def translate(error: psycopg.Error) -> EtlError:
    return StoreError(failure_of(error).name)


def pool_of(
    database: Database, sleep: Callable[[float], None], *, kept: int = 2, at_most: int | None = None
) -> Pool:
    return Pool(
        lambda: connect_shared(Dsn.parse(database.dsn))[0],
        translate,
        kept=kept,
        at_most=at_most,
        give_up_after_s=5,
        sleep=sleep,
    )


def pid(connection: Connection) -> int:
    return connection.info.backend_pid


def test_work_is_repeated_if_an_idle_connection_had_ended(newest_database: Database) -> None:
    slept = Slept()
    with closing(pool_of(newest_database, slept)) as pool:
        before = pool.run(pid)
        assert pool.run(pid) == before
        newest_database.query("select pg_terminate_backend(%s, 5000)", [before])

        done: list[int] = []

        def work(connection: Connection) -> None:
            done.append(pid(connection))
            connection.execute("select 1")

        pool.run(work)
        assert done[0] == before
        assert len(done) == 2
        assert len(slept) == 1


def test_a_server_that_never_answers_is_given_up(newest_database: Database) -> None:
    """TCP notices nothing: the proxy in between is alive."""
    with Proxy(newest_database.dsn) as proxy, psycopg.connect(proxy.dsn) as connection:
        with answered_within(connection, 30):
            connection.execute("select 1")
        proxy.stall()
        with (
            pytest.raises(psycopg.OperationalError, match="gave no answer for 0") as held,
            answered_within(connection, 0.1),
        ):
            connection.execute("select 1")
        assert failure_of(held.value) is Failure.LOST
        assert connection.closed


def test_work_that_may_run_only_once_gets_a_working_connection(
    newest_database: Database,
) -> None:
    slept = Slept()
    with closing(pool_of(newest_database, slept)) as pool:
        before = pool.run(pid)
        newest_database.query("select pg_terminate_backend(%s, 5000)", [before])
        assert pool.run(pid, is_repeatable=False) != before
        assert slept == []

        def lose(connection: Connection) -> None:
            newest_database.query("select pg_terminate_backend(%s, 5000)", [pid(connection)])
            connection.execute("select 1")

        with pytest.raises(StoreError, match="LOST"):
            pool.run(lose, is_repeatable=False)
        assert slept == []


def test_a_conflict_is_retried_and_a_refusal_is_not(newest_database: Database) -> None:
    slept = Slept()
    with closing(pool_of(newest_database, slept)) as pool:
        codes = iter(["40001", "40P01"])

        def work(connection: Connection) -> str:
            code = next(codes, None)
            if code is not None:
                connection.execute(
                    sql.SQL("do {}").format(f"begin raise exception using errcode = '{code}'; end")
                )
            return "done"

        assert pool.run(work, is_repeatable=False) == "done"
        assert len(slept) == 2
        with pytest.raises(StoreError, match="MISSING"):
            pool.run(lambda connection: connection.execute("select from no_such_table"))
        with pytest.raises(psycopg.errors.UndefinedTable):
            pool.run(
                lambda connection: connection.execute("select from no_such_table"),
                untranslated=psycopg.errors.UndefinedTable,
            )
        assert len(slept) == 2


def test_the_very_first_connection_is_tried_once(newest_database: Database) -> None:
    slept = Slept()
    pool = Pool(
        lambda: psycopg.connect(make_conninfo(newest_database.dsn, port=1)),
        translate,
        kept=1,
        give_up_after_s=5,
        sleep=slept,
    )
    with pytest.raises(StoreError, match="LOST"):
        pool.run(pid)
    assert slept == []


def test_no_more_connections_are_used_or_kept_than_allowed(newest_database: Database) -> None:
    with closing(pool_of(newest_database, Slept(), kept=1, at_most=2)) as pool:
        with pool.borrow() as first, pool.borrow() as second:
            waiting = threading.Event()
            found: list[int] = []

            def third() -> None:
                waiting.set()
                found.append(pool.run(pid))

            thread = threading.Thread(target=third)
            thread.start()
            waiting.wait()
            assert found == []
            pids = {pid(first), pid(second)}
        thread.join()
        assert set(found) <= pids
        with pool.borrow() as kept:
            assert pid(kept) in pids
            with pool.borrow() as other:
                assert pid(other) not in pids


def test_connections_opened_in_a_busy_period_are_closed_in_a_quiet_one(
    newest_database: Database,
) -> None:
    now = 0.0
    pool = Pool(
        lambda: connect_shared(Dsn.parse(newest_database.dsn))[0],
        translate,
        kept=4,
        give_up_after_s=5,
        clock=lambda: now,
    )
    with closing(pool):
        with pool.borrow() as first, pool.borrow() as second:
            pass
        assert not first.closed
        assert not second.closed
        now = 500.0
        with pool.borrow() as used:
            pass
        now = 700.0
        with pool.borrow() as again:
            assert again is used
        assert [first.closed, second.closed] == [first is not used, second is not used]


def test_a_connection_in_use_when_the_pool_is_closed_is_not_kept(
    newest_database: Database,
) -> None:
    with closing(pool_of(newest_database, Slept())) as pool:
        with pool.borrow() as used:
            pool.close()
        assert used.closed
        assert pool.run(pid) > 0


def test_a_transaction_that_was_left_open_is_not_handed_on(newest_database: Database) -> None:
    with closing(pool_of(newest_database, Slept())) as pool:
        with pool.borrow() as connection:
            connection.execute("begin")
        assert connection.closed


# -- notifications and migrations --------------------------------------------------------------


def test_a_subscription_receives_notifications_and_can_be_woken(newest_database: Database) -> None:
    connection, _ = connect_shared(Dsn.parse(newest_database.dsn))
    near, far = socket.socketpair()
    with closing(Subscription(connection, "Odd channel")) as heard, near, far:
        newest_database.execute("select pg_notify('Odd channel', 'a')", "notify other, 'b'")
        newest_database.execute("select pg_notify('Odd channel', 'c')")
        found = heard.wait(60)
        while len(found) < 2:
            found += heard.wait(60)
        assert found == ["a", "c"]
        assert heard.wait(0) == []
        far.send(b"x")
        assert heard.wait(600, wakeup=near) == []
        newest_database.query("select pg_terminate_backend(%s, 5000)", [pid(connection)])
        with pytest.raises(psycopg.OperationalError):
            heard.wait(60)


def test_a_subscription_notices_a_server_that_is_gone_behind_a_proxy(
    newest_database: Database,
) -> None:
    """Otherwise it would wait forever for changes of other processes."""
    with Proxy(newest_database.dsn) as proxy:
        connection, _ = connect_shared(Dsn.parse(proxy.dsn))
        asking = Subscription(connection, "changes", ask_every_s=0.05, answer_s=0.2)
        with closing(asking) as heard:
            proxy.stall()
            with pytest.raises(psycopg.OperationalError, match=r"gave no answer for 0\.2 s"):
                heard.wait(60)


def test_a_migration_that_never_gets_its_lock_ends(newest_database: Database) -> None:
    """Another process may have stopped in the middle of one."""
    series = migrate.Migrations("tests", STORE.package, StoreError)
    with newest_database.connect() as other, newest_database.connect() as connection:
        other.execute("select pg_advisory_lock(%s, %s)", lock_key("etl", "", series.ledger))
        asked: list[str] = []
        with pytest.raises(psycopg.errors.LockNotAvailable):
            migrate.run(
                connection,
                "etl",
                series,
                before=lambda: asked.append("before"),
                lock_timeout_s=0.05,
            )
        assert asked == []
        assert newest_database.query("select to_regnamespace('etl')") == [(None,)]


def test_a_waiting_session_names_those_at_the_end_of_its_chain_of_waits(
    database: Database,
) -> None:
    """A waits for B, which waits for C; and for a prepared transaction, which has no session."""
    database.execute("create table t (n int)", "create table u (n int)")
    a, b = database.connect(autocommit=False), database.connect(autocommit=False)
    c = database.connect(autocommit=False, application_name="c")
    watching = database.connect()

    def lock(connection: Connection, table: str) -> threading.Thread:
        statement = f"lock table {table} in access exclusive mode"
        thread = threading.Thread(target=connection.execute, args=[statement.encode()])
        thread.start()
        return thread

    def is_waiting(connection: Connection) -> bool:
        query = "select cardinality(pg_blocking_pids(%s)) > 0"
        return watching.execute(query, [connection.info.backend_pid]).fetchone() == (True,)

    with closing(a), closing(b), closing(c), closing(watching):
        lock(c, "t").join()
        lock(b, "u").join()
        second = lock(b, "t")
        wait_until(lambda: is_waiting(b))
        first = lock(a, "u")
        wait_until(lambda: is_waiting(a))

        [found] = fetch_blockers(watching, a.info.backend_pid)
        pid = c.info.backend_pid
        assert (found.pid, found.relation) == (pid, "public.t")
        assert str(found).startswith(f"PID {pid} (c), idle in transaction, open for ")

        c.execute("prepare transaction 'o''clock'")
        [found] = fetch_blockers(watching, a.info.backend_pid)
        assert (found.pid, found.relation) == (None, "public.t")
        assert str(found).startswith('the prepared transaction "o\'clock", open for ')
        watching.execute(found.solution.partition("or ")[2].encode())
        second.join()
        b.rollback()
        first.join()
        assert fetch_blockers(watching, a.info.backend_pid) == []
