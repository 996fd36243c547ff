"""Kills, stops and cuts off a pipeline at random while rows change, and compares them in the end.

The seed decides what is done, and in which order; not when, and not what a pipeline was doing then.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.destinations.duckdb.reading import read_connection
from etl_dagster.model.stores import CoordinatingStore
from tests.support.database import Database
from tests.support.killed_workers import (
    Workers,
    destination_rows,
    query_destination,
    source_rows,
    task_of,
)
from tests.support.proxy import Proxy
from tests.support.random_shop import TABLES, create_tables, workload

ROWS = 3000
_SETTINGS: Mapping[str, str | int] = {
    "max_replication_slots": 100,
    "max_wal_senders": 100,
    "max_connections": 300,
}


class Chaos:
    """What may go wrong.

    Args:
        file: the DuckDB file, where that is the destination.
    """

    def __init__(
        self,
        rng: random.Random,
        store: CoordinatingStore,
        workers: Workers,
        proxies: Mapping[str, Proxy],
        file: Path | None,
    ) -> None:
        self._rng, self._store, self._workers = rng, store, workers
        self._proxies, self._file = proxies, file

    def step(self) -> str:
        """Do one thing; what it was."""
        actions: list[Callable[[float], str]] = [self.kill, self.kill, self.stop, self.copy]
        actions += [self.cut, self.slow, self.stall, self.refuse]
        if self._file is not None:
            actions.append(self.hold)
        # Always as many numbers, so that the plan doesn't depend on what happens.
        action, seconds = self._rng.choice(actions), self._rng.uniform(0.1, 3)
        return action(seconds)

    def kill(self, seconds: float) -> str:
        self._workers.kill_one(random.Random(seconds))
        return "SIGKILL"

    def stop(self, seconds: float) -> str:
        living = self._workers.living
        for process in living:
            process.send(signal.SIGSTOP)
        time.sleep(seconds)
        for process in living:
            process.send(signal.SIGCONT)
        return f"SIGSTOP for {seconds:.1f} s"

    def copy(self, seconds: float) -> str:
        self._workers.have_something_copied(random.Random(seconds))
        return "ask for a copy"

    def _proxy(self, seconds: float) -> tuple[str, Proxy]:
        return random.Random(seconds).choice([*self._proxies.items()])

    def cut(self, seconds: float) -> str:
        place, proxy = self._proxy(seconds)
        proxy.cut()
        return f"cut connections to the {place}"

    def slow(self, seconds: float) -> str:
        place, proxy = self._proxy(seconds)
        proxy.slow(20_000)
        time.sleep(seconds)
        proxy.flow()
        return f"slow connections to the {place} for {seconds:.1f} s"

    def stall(self, seconds: float) -> str:
        place, proxy = self._proxy(seconds)
        proxy.stall()
        time.sleep(seconds)
        proxy.cut()
        proxy.flow()
        return f"stalled, then cut connections to the {place}, {seconds:.1f} s"

    def refuse(self, seconds: float) -> str:
        place, proxy = self._proxy(seconds)
        proxy.refuse()
        time.sleep(seconds)
        proxy.flow()
        return f"refused connections to the {place} for {seconds:.1f} s"

    def hold(self, seconds: float) -> str:
        assert self._file is not None
        if not self._file.exists():
            return "no file to hold yet"
        with read_connection(self._file):
            time.sleep(seconds)
        return f"a reader held the file for {seconds:.1f} s"


def run(seed: int, minutes: float, kind: str) -> None:
    """Raises what went wrong for good."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-chaos-")))
        folder.chmod(0o755)
        server = stack.enter_context(
            EmbeddedPostgres(
                folder / "server", find_servers()[0], settings=_SETTINGS, durable=False
            )
        )
        source = stack.enter_context(Database.create(server))
        create_tables(source.dsn, ROWS)
        proxies = {"source": stack.enter_context(Proxy(source.dsn))}
        file = folder / "shop.duckdb" if kind == "duckdb" else None
        if file is not None:
            destination = {"type": "duckdb", "path": str(file), "changelog": True}
        else:
            replica = stack.enter_context(Database.create(server))
            proxies["destination"] = stack.enter_context(Proxy(replica.dsn))
            destination = {
                "type": "postgres",
                "dsn": proxies["destination"].dsn,
                "changelog": True,
            }
        task = task_of(proxies["source"].dsn, destination)
        task["config"]["state_store"] = {"dsn": source.dsn}
        config = parse_config(task["config"], {})
        store = build_store(config)
        stack.callback(store.close)
        changes = stack.enter_context(workload(source.dsn, rng.randrange(2**32), ROWS))
        workers = stack.enter_context(Workers(task, store, folder))
        chaos = Chaos(rng, store, workers, proxies, file)
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < minutes * 60:
            workers.keep_alive()
            print(f"{now:6.1f} s  {chaos.step()}", flush=True)
            time.sleep(rng.uniform(0, 2))
        changes.stop()
        workers.run_until_caught_up(source.dsn)
        for table in TABLES:
            same = destination_rows(config, table) == source_rows(source.dsn, table)
            assert same, f"{table} isn't what the source has"
        doubled = query_destination(
            config,
            "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
            " group by table_id, commit_lsn, ordinal having count(*) > 1",
        )
        assert doubled == [], f"{len(doubled)} changes were applied twice"
        print(f"all tables are the source's, each change applied once; killed {workers.kills}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--destination", choices=["duckdb", "postgres"], default="duckdb")
    options = parser.parse_args()
    print(
        f"seed {options.seed}: again with --seed {options.seed} --minutes {options.minutes:g}"
        f" --destination {options.destination} (the same plan, not the same timing)",
        flush=True,
    )
    run(options.seed, options.minutes, options.destination)


if __name__ == "__main__":
    main()
