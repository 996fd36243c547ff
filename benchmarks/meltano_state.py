"""`python -m benchmarks.meltano_state`: our state backend next to Meltano's system database.

Both on one Postgres, which waits for its disk as it does by default, and both through Meltano's
`StateStoreManager`; contenders take turns. A ratio is the system database's time divided by ours:
above 1 we are faster. "kept" says how many of the writers' updates were there in the end: the
system database takes no lock, so some overwrite others, and some fail.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from meltano.core.models import SystemModel
from meltano.core.state_store.base import MeltanoState, StateStoreManager
from meltano.core.state_store.db import DBStateStoreManager
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.integrations.meltano.backend import PostgresStateBackend

_FORK = multiprocessing.get_context("fork")
WRITERS = 8
Factory = Callable[[], StateStoreManager]


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one update, and how many of the updates were kept."""

    p50_ms: float
    p99_ms: float
    kept: float = 1.0

    @classmethod
    def of(cls, seconds: Iterable[float], kept: float = 1.0) -> Spread:
        cuts = statistics.quantiles((1000 * second for second in seconds), n=100)
        return cls(cuts[49], cuts[98], kept)


@contextmanager
def contenders(folder: Path) -> Any:
    """Two databases in one server, a factory of managers for each."""
    with EmbeddedPostgres(folder / "server", find_servers()[0], durable=True) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            for name in ("ours", "meltanos"):
                admin.execute(f"CREATE DATABASE {name}")
        parts = conninfo_to_dict(server.dsn())
        address = f"{parts['user']}:{parts['password']}@{parts['host']}:{parts['port']}"

        def ours() -> StateStoreManager:
            return PostgresStateBackend(f"postgres://{address}/ours")

        def meltanos() -> StateStoreManager:
            engine = sqlalchemy.create_engine(f"postgresql+psycopg://{address}/meltanos")
            return DBStateStoreManager(session=Session(engine))

        # A fork must not inherit connections.
        _in_a_process(lambda: ours().migrate())
        _in_a_process(lambda: _make_system_tables(f"postgresql+psycopg://{address}/meltanos"))
        yield {"ours": ours, "system database": meltanos}


def _make_system_tables(url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    SystemModel.metadata.create_all(engine)
    engine.dispose()


def _in_a_process(work: Callable[[], Any]) -> Any:
    """What it returns; with connections of its own, and none left behind."""
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def state(streams: int, value: int) -> dict[str, Any]:
    return {
        "singer_state": {
            "bookmarks": {
                f"public-table_{number}": {
                    "replication_key": "updated_at",
                    "replication_key_value": f"2026-01-01T00:00:00.{value:06}+00:00",
                }
                for number in range(streams)
            }
        }
    }


def update_alone(factory: Factory, rounds: int, *, complete: bool) -> list[float]:
    manager = factory()
    state_id = "complete" if complete else "partial"
    seconds = []
    for value in range(rounds):
        content = state(20, value)
        halves = ({}, content) if complete else (content, {})
        began = time.perf_counter()
        manager.update(MeltanoState(state_id, *halves))
        seconds.append(time.perf_counter() - began)
    return seconds


def update_together(factory: Factory, rounds: int, *, one_id: bool) -> tuple[list[float], float]:
    """Eight processes; each update of theirs adds a key of its own."""
    state_ids = ["together" if one_id else f"together-{n}" for n in range(WRITERS)]

    def clear() -> None:
        manager = factory()
        for state_id in set(state_ids):
            manager.clear(state_id)

    _in_a_process(clear)
    barrier = _FORK.Barrier(WRITERS)

    def write(writer: int) -> list[float]:
        manager = factory()
        manager.get(state_id="connect")
        barrier.wait()
        seconds = []
        for value in range(rounds):
            bookmarks = {f"{writer}-{value}": value}
            began = time.perf_counter()
            try:
                manager.update(
                    MeltanoState(state_ids[writer], {"singer_state": {"bookmarks": bookmarks}}, {})
                )
            except SQLAlchemyError:
                assert isinstance(manager, DBStateStoreManager)
                manager.session.rollback()
            seconds.append(time.perf_counter() - began)
        return seconds

    pipes = []
    for writer in range(WRITERS):
        receiver, sender = _FORK.Pipe(duplex=False)
        _FORK.Process(target=lambda s=sender, w=writer: s.send(write(w))).start()
        sender.close()
        pipes.append(receiver)
    seconds = [second for pipe in pipes for second in pipe.recv()]

    def kept() -> int:
        manager = factory()
        found = [manager.get(state_id=state_id) for state_id in set(state_ids)]
        return sum(len(one.partial_state["singer_state"]["bookmarks"]) for one in found if one)

    return seconds, _in_a_process(kept) / (WRITERS * rounds)


def bulk(factory: Factory, count: int) -> dict[str, float]:
    manager = factory()
    states = [MeltanoState(f"prod:tap-{n}-to-target", {}, state(3, n)) for n in range(count)]
    seconds = {}
    began = time.perf_counter()
    assert manager.set_all(states) == count
    seconds["import"] = time.perf_counter() - began
    began = time.perf_counter()
    assert len(list(manager.get_state_ids("prod:tap-*"))) == count
    seconds["list"] = time.perf_counter() - began
    began = time.perf_counter()
    assert len([one.to_dict() for one in manager.get_all("prod:*")]) == count
    seconds["export"] = time.perf_counter() - began
    began = time.perf_counter()
    assert manager.clear_all() >= count
    seconds["clear"] = time.perf_counter() - began
    return seconds


def measure(rounds: int, states: int, folder: Path) -> dict[str, Any]:
    alone: dict[str, dict[str, list[float]]] = {"update, complete": {}, "update, partial": {}}
    together: dict[str, dict[str, Spread]] = {}
    in_bulk: dict[str, dict[str, float]] = {}
    with contenders(folder) as factories:
        # In slices, so that what else the machine does meets both alike.
        for _ in range(4):
            for name, factory in factories.items():
                for key, seconds in alone.items():
                    seconds.setdefault(name, []).extend(
                        _in_a_process(
                            lambda f=factory, k=key: update_alone(
                                f, rounds // 4, complete=k.endswith("complete")
                            )
                        )
                    )
        for key, one_id in ((f"{WRITERS} writers, one ID", True), (f"{WRITERS} writers", False)):
            for name, factory in factories.items():
                seconds, kept = update_together(factory, rounds // 8, one_id=one_id)
                together.setdefault(key, {})[name] = Spread.of(seconds, kept)
        for name, factory in factories.items():
            in_bulk[name] = _in_a_process(lambda f=factory: bulk(f, states))
    spreads = {
        key: {name: Spread.of(seconds) for name, seconds in both.items()}
        for key, both in alone.items()
    } | together
    return {"spreads": spreads, "bulk": in_bulk}


def show(measured: dict[str, Any], states: int, console: Console) -> dict[str, float]:
    """Print both and return the ratios."""
    ratios: dict[str, float] = {}
    table = Table(title="ms for one update; ratio > 1: ours is faster")
    for heading in ("", "", "system database", "ours", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for key, both in measured["spreads"].items():
        ours, theirs = both["ours"], both["system database"]
        for part in ("p50_ms", "p99_ms"):
            mine, its = getattr(ours, part), getattr(theirs, part)
            ratios[f"{key}, {part[:3]}"] = its / mine
            table.add_row(key, part[:3], f"{its:.2f}", f"{mine:.2f}", f"{its / mine:.2f}")
        table.add_row(key, "kept", f"{theirs.kept:.0%}", f"{ours.kept:.0%}", "")
    ours_bulk, theirs_bulk = measured["bulk"]["ours"], measured["bulk"]["system database"]
    for key, mine in ours_bulk.items():
        its = theirs_bulk[key]
        ratios[f"{key} {states} states"] = its / mine
        table.add_row(
            f"{key} {states:,} states",
            "all",
            f"{1000 * its:,.0f}",
            f"{1000 * mine:,.0f}",
            f"{its / mine:.2f}",
        )
    console.print(table)
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="updates of each kind")
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etl_dagster_bench_") as folder:
        measured = measure(arguments.rounds, arguments.states, Path(folder))
    ratios = show(measured, arguments.states, Console(stderr=True))
    if arguments.json:
        json.dump(ratios, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
