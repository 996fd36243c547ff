"""What can go wrong, and what just happens: each by its name in a plan."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import psycopg
from psycopg.conninfo import make_conninfo

from etl_dagster.destinations.duckdb.reading import read_connection
from etl_dagster.destinations.postgres.config import PostgresDestinationConfig
from etl_dagster.errors import EtlError
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.repair_requests import request_repairs
from etl_dagster.runtime.retrying import request_retry, require_retryable, stopped_tables
from etl_dagster.source.control import SourceControl
from tests.chaos.world import World
from tests.support.random_shop import TABLES
from tests.support.waiting import wait_until

Trouble = Callable[[World, random.Random], AbstractContextManager[str]]
Event = Callable[[World, random.Random], str]


# -- over at once --------------------------------------------------------------------------------


def kill(world: World, rng: random.Random) -> str:
    return f"SIGKILL of {world.workers.kill_one(rng)}"


def copy(world: World, rng: random.Random) -> str:
    world.workers.have_something_copied(rng)
    return "another copy, where all are streamed"


def resync(world: World, rng: random.Random) -> str:
    """As `etl-dagster resync`, whatever the table does just now."""
    name, store = _some_destination(world, rng)
    states = store.get_table_replication_states()
    if not states:
        return "no table to copy again"
    table_id = rng.choice([*states])
    store.request_copy(table_id)
    return f"resync of table {table_id} at {name}"


def repair(world: World, rng: random.Random) -> str:
    name, store = _some_destination(world, rng)
    states = store.get_table_replication_states()
    ready = [table_id for table_id, state in states.items() if isinstance(state, Ready)]
    if not ready:
        return "no table to repair"
    table_id = rng.choice(ready)
    request_repairs(store, [table_id])
    return f"repair of table {table_id} at {name}"


def retry(world: World, rng: random.Random) -> str:
    """As `etl-dagster retry --all`, at every destination."""
    told = []
    for name, member in world.members.items():
        store = world.stores[name]
        control = SourceControl(member.source, application_name="chaos")
        with contextlib.closing(control):
            for table_id in stopped_tables(store):
                try:
                    state = require_retryable(member, store, control, table_id, str(table_id))
                    lsn = request_retry(store, table_id, state)
                    told.append(f"{table_id} at {name}, from {lsn}")
                except EtlError as error:
                    told.append(f"{table_id} at {name}, not: {error.reason}")
    return f"retry of tables {', '.join(told)}" if told else "no table to retry"


def cut(world: World, rng: random.Random) -> str:
    place = rng.choice([*world.proxies])
    world.proxies[place].cut()
    return f"cut connections to the {place}"


def change_tables(world: World, rng: random.Random) -> str:
    """Columns, names, identities, partitions, tables: whatever its owner does to one."""
    before = len(world.owner.log)
    world.owner.step()
    return " ".join(world.owner.log[before:])


def leave(world: World, rng: random.Random) -> str:
    before = len(world.owner.log)
    world.owner.leave_and_return()
    return " ".join(world.owner.log[before:])


def rewrite(world: World, rng: random.Random) -> str:
    world.owner.rewrite()
    return world.owner.log[-1]


def restart_at_once(world: World, rng: random.Random) -> str:
    """As after a crash of the server: what was committed is there, and nothing else."""
    place = rng.choice([*world.servers])
    if world.servers[place].process_id is None:
        return f"the server of the {place} is down already"
    with _down(world, place, signal.SIGQUIT):
        pass
    return f"crash and start of the server of the {place}"


EVENTS: Mapping[str, tuple[Event, float]] = {
    "kill": (kill, 8),
    "copy": (copy, 2),
    "resync": (resync, 1),
    "repair": (repair, 2),
    "retry": (retry, 1),
    "cut": (cut, 3),
    "change tables": (change_tables, 6),
    "leave": (leave, 1),
    "rewrite": (rewrite, 0.5),
    "crash of a server": (restart_at_once, 0.7),
}


# -- for a while -----------------------------------------------------------------------------------


@contextmanager
def stopped(world: World, rng: random.Random) -> Iterator[str]:
    """Some processes are suspended, and don't know of it afterwards."""
    living = world.workers.living
    chosen = [process for process in living if len(living) == 1 or rng.random() < 0.6]
    for process in chosen:
        process.send(signal.SIGSTOP)
    try:
        yield f"SIGSTOP of {len(chosen)} of {len(living)} processes"
    finally:
        for process in chosen:
            process.send(signal.SIGCONT)


@contextmanager
def slow(world: World, rng: random.Random) -> Iterator[str]:
    place = rng.choice([*world.proxies])
    world.proxies[place].slow(20_000)
    try:
        yield f"slow connections to the {place}"
    finally:
        world.proxies[place].flow()


@contextmanager
def stalled(world: World, rng: random.Random) -> Iterator[str]:
    """What was sent meanwhile arrives late, or never."""
    place, ends = rng.choice([*world.proxies]), rng.random() < 0.5
    world.proxies[place].stall()
    try:
        yield f"stalled connections to the {place}{', cut in the end' * ends}"
    finally:
        if ends:
            world.proxies[place].cut()
        world.proxies[place].flow()


@contextmanager
def half_open(world: World, rng: random.Random) -> Iterator[str]:
    """The server knows of the end of its connections, the pipeline only learns of it later."""
    place = rng.choice([*world.proxies])
    world.proxies[place].half_open()
    try:
        yield f"half-open connections to the {place}"
    finally:
        world.proxies[place].cut()
        world.proxies[place].flow()


@contextmanager
def forgotten(world: World, rng: random.Random) -> Iterator[str]:
    """As by a firewall that lost its table: neither side learns of it."""
    place = rng.choice([*world.proxies])
    world.proxies[place].forget()
    try:
        yield f"connections to the {place} lead nowhere"
    finally:
        world.proxies[place].cut()


@contextmanager
def refused_table(world: World, rng: random.Random) -> Iterator[str]:
    """A destination takes no change of one table, which is set aside, and resumed afterwards."""
    found = [
        (name, member.destination.dsn.get_secret_value())
        for name, member in world.members.items()
        if isinstance(member.destination, PostgresDestinationConfig)
    ]
    if not found:
        yield "no destination that refuses a table"
        return
    name, dsn = rng.choice(found)
    dsn = make_conninfo(dsn, options="-c lock_timeout=1s")
    table = f"public.{rng.choice([*TABLES])}"
    try:
        with psycopg.connect(dsn, autocommit=True) as there:
            there.execute(f"alter table {table} add constraint refused check (false) not valid")
        what = f"{name} refuses {table}"
    except psycopg.Error as error:
        what = f"{name} could not be had to refuse {table}: {type(error).__name__}"
    try:
        yield what
    finally:
        wait_until(lambda: _takes_again(dsn, table))
        with contextlib.suppress(EtlError):  # otherwise it ends up copied
            retry(world, rng)


def _takes_again(dsn: str, table: str) -> bool:
    try:
        with psycopg.connect(dsn, autocommit=True) as there:
            there.execute(f"alter table if exists {table} drop constraint if exists refused")
    except psycopg.Error:
        return False
    return True


@contextmanager
def refused(world: World, rng: random.Random) -> Iterator[str]:
    place = rng.choice([*world.proxies])
    world.proxies[place].refuse()
    try:
        yield f"refused connections to the {place}"
    finally:
        world.proxies[place].flow()


@contextmanager
def server_down(world: World, rng: random.Random) -> Iterator[str]:
    place = rng.choice([*world.servers])
    with _down(world, place, signal.SIGINT):
        yield f"the server of the {place} is down"


@contextmanager
def held(world: World, rng: random.Random) -> Iterator[str]:
    """A reader keeps the writer out of the file."""
    if world.file is None or not world.file.exists():
        yield "no file to hold"
        return
    with read_connection(world.file):
        yield "a reader holds the file"


@contextmanager
def disk_full(world: World, rng: random.Random) -> Iterator[str]:
    """No file may grow, for the processes of now: a write that would fails as on a full disk."""
    if world.file is None or not world.file.exists():
        yield "no file that may not grow"
        return
    most = world.file.stat().st_size + 4096 * rng.randrange(20)
    pids = [process.pid for process in world.workers.living if process.pid is not None]
    for pid in pids:
        _limit_files(pid, most)
    try:
        yield f"no file of {len(pids)} processes may grow beyond {most} bytes"
    finally:
        for pid in pids:
            _limit_files(pid, resource.RLIM_INFINITY)


TROUBLES: Mapping[str, tuple[Trouble, float]] = {
    "stopped": (stopped, 3),
    "slow": (slow, 1),
    "stalled": (stalled, 3),
    "half-open": (half_open, 2),
    "forgotten": (forgotten, 1),
    "refused": (refused, 2),
    "refused table": (refused_table, 3),
    "server down": (server_down, 2),
    "held": (held, 2),
    "disk full": (disk_full, 3),
}


def _some_destination(world: World, rng: random.Random) -> tuple[str, CoordinatingStore]:
    return rng.choice([*world.stores.items()])


@contextmanager
def _down(world: World, place: str, how: signal.Signals) -> Iterator[None]:
    """How: SIGINT for a stop that ends connections, SIGQUIT for what is like a crash."""
    server = world.servers[place]
    assert server.process_id is not None
    os.kill(server.process_id, how)
    server.stop()
    try:
        yield
    finally:
        server.start()


def _limit_files(pid: int, most: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
