"""Postgres to Postgres: the same backlog and the same copy through CREATE SUBSCRIPTION and ours.

Both write to another database of the source's server. The subscription is Postgres' own logical
replication with its own settings; it gets a slot that is there, since it can't make one where both
ends are one server.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Contest, Harness, Measurement
from benchmarks.streams import ORDER_ROWS, ORDERS

_CHECK = "select count(*), sum(quantity), sum(price), max(description) from public.orders"
_LOOK_S = 0.02
_TIMEOUT_S = 900.0


def backlog(harness: Harness) -> Contest:
    """1,000,000 rows inserted and 300,000 updated, each in a transaction of its own."""
    inserts, updates = harness.scaled(1_000_000), harness.scaled(300_000)
    result = Contest(f"{inserts:,} inserts and {updates:,} updates of one row each")
    with _source(harness, "pg_backlog") as database:
        runs = range(harness.rounds)
        with (
            _all(harness, [f"pg_ours_{n}" for n in runs]),
            _all(harness, [f"pg_native_{n}" for n in runs], ORDERS),
        ):
            for number in runs:
                _subscribe(harness, database, f"pg_native_{number}", copies=False)
                harness.run_worker(_task(harness, database, number))
            _commit(harness, database, inserts, updates)
            end_lsn = harness.insert_lsn(database)
            with harness.connect(database) as connection:
                connection.execute("checkpoint")
            expected = harness.ask(database, _CHECK)
            for number in runs:
                seconds = _native(harness, f"pg_native_{number}", expected, end_lsn)
                native = Measurement(inserts + updates, seconds, 0.0)
                result.measured.setdefault("subscription", []).append(native)
                task = _task(harness, database, number) | {"end_lsn": end_lsn}
                measured = Measurement(**harness.run_worker(task, timeout_s=_TIMEOUT_S))
                result.measured.setdefault("backlog_to_postgres", []).append(measured)
                _require_same(harness, f"pg_ours_{number}", expected)
    return result


def initial_copy(harness: Harness) -> Contest:
    """A table of 5,000,000 rows, ours over four connections."""
    rows = harness.scaled(5_000_000)
    result = Contest(f"{rows:,} rows copied")
    fill = ORDER_ROWS.format(first=1, last=rows)
    with _source(harness, "pg_copied", fill) as database:
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
        expected = harness.ask(database, _CHECK)
        for number in range(harness.rounds):
            native = f"pg_native_{number}"
            with _replica(harness, native, ORDERS):
                _subscribe(harness, database, native, copies=True)
                seconds = _native(harness, native, expected)
            result.measured.setdefault("subscription_copy", []).append(
                Measurement(rows, seconds, 0.0)
            )
            ours = f"pg_ours_{number}"
            with _all(harness, [ours]):
                task = _task(harness, database, number)
                measured = harness.run_worker(task, timeout_s=_TIMEOUT_S) | {"rows": rows}
                result.measured.setdefault("copy_to_postgres", []).append(Measurement(**measured))
                _require_same(harness, ours, expected)
    return result


# -- databases -----------------------------------------------------------------------------------


@contextmanager
def _source(harness: Harness, name: str, *more: str) -> Iterator[str]:
    publication = f"create publication {PUBLICATION} for table orders"
    with harness.database(name, ORDERS, *more, publication) as database:
        yield database


@contextmanager
def _replica(harness: Harness, name: str, *statements: str) -> Iterator[None]:
    with harness.database(name, *statements):
        try:
            yield
        finally:
            _unsubscribe(harness, name)


@contextmanager
def _all(harness: Harness, names: list[str], *statements: str) -> Iterator[None]:
    if not names:
        yield
        return
    with _replica(harness, names[0], *statements), _all(harness, names[1:], *statements):
        yield


def _subscribe(harness: Harness, source: str, replica: str, *, copies: bool) -> None:
    with harness.connect(source) as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [replica])
    with harness.connect(replica) as connection:
        dsn = harness.server.dsn(source).replace("'", "''")
        connection.execute(
            f"create subscription {replica} connection '{dsn}' publication {PUBLICATION} "
            f"with (create_slot = false, slot_name = '{replica}', enabled = false, "
            f"copy_data = {str(copies).lower()})".encode()
        )


def _unsubscribe(harness: Harness, replica: str) -> None:
    with harness.connect(replica) as connection:
        for (name,) in connection.execute(
            "select subname from pg_subscription join pg_database d on d.oid = subdbid "
            "where datname = current_database()"
        ).fetchall():
            connection.execute(f"alter subscription {name} disable".encode())
            connection.execute(f"alter subscription {name} set (slot_name = none)".encode())
            connection.execute(f"drop subscription {name}".encode())
        # Its worker takes a moment to let go of the slot.
        connection.execute(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots "
            "where slot_name = %s and active",
            [replica],
        )


def _commit(harness: Harness, database: str, inserts: int, updates: int) -> None:
    """Each row in a transaction of its own."""
    with harness.connect(database) as connection:
        connection.execute(
            """
            create procedure fill(rows int, updates int) language plpgsql as $$
            begin
              for i in 1 .. rows loop
                insert into orders values (i, (i * 7) % 1000,
                  ((i::bigint * 13) % 100000)::numeric / 100, 'order number ' || i,
                  timestamptz '2024-01-01 00:00:00+00' + i * interval '1.5 seconds', i % 3 = 0);
                commit;
              end loop;
              for i in 1 .. updates loop
                update orders set quantity = quantity + 1 where id = (i::bigint * 7919) % rows + 1;
                commit;
              end loop;
            end $$
            """
        )
        connection.execute(f"call fill({inserts}, {updates})".encode())


# -- contenders ----------------------------------------------------------------------------------


def _native(
    harness: Harness, replica: str, expected: tuple[object, ...], end_lsn: str = "0/0"
) -> float:
    """Seconds until the subscription has brought everything before an LSN, and its copy."""
    started = time.perf_counter()
    with harness.connect(replica) as connection:
        connection.execute(f"alter subscription {replica} enable".encode())
        while not _is_done(harness, replica, end_lsn):
            if time.perf_counter() - started > _TIMEOUT_S:
                raise BenchmarkFailed("the subscription did not catch up")
            time.sleep(_LOOK_S)
        seconds = time.perf_counter() - started
    _require_same(harness, replica, expected)
    return seconds


def _is_done(harness: Harness, replica: str, end_lsn: str) -> bool:
    [is_ready] = harness.ask(replica, "select bool_and(srsubstate = 'r') from pg_subscription_rel")
    [is_past] = harness.ask(
        replica,
        f"select confirmed_flush_lsn >= '{end_lsn}' from pg_replication_slots "
        f"where slot_name = '{replica}'",
    )
    return bool(is_ready) and bool(is_past)


def _task(harness: Harness, database: str, number: int) -> dict[str, object]:
    config = harness.config(
        database,
        f"ours_{number}",
        destination={"type": "postgres", "dsn": harness.server.dsn(f"pg_ours_{number}")},
    )
    return {"kind": "catch_up", "config": config, "destination": "postgres"}


def _require_same(harness: Harness, database: str, expected: tuple[object, ...]) -> None:
    found = harness.ask(database, _CHECK)
    if found != expected:
        raise BenchmarkFailed(f"the source has {expected}, the destination {found}")
