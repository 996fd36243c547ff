"""The processors' time of servers and of this process, by what the processes do, as it passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from etl_dagster.demo.server import EmbeddedPostgres

#: A process that ends loses what it used since it was looked at last.
_LOOK_S = 0.25
#: This process: the benchmark, with the proxy that adds latency where there is one.
ITSELF = "benchmark"
#: Of the source's server.
WALSENDERS, SOURCE = "walsenders", "source"


@dataclass
class Spent:
    """Processors' time so far, by group, at each look."""

    _looks: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def add(self, spent: Mapping[str, float]) -> None:
        self._looks.append((time.monotonic(), spent))

    def between(self, began: float, ended: float) -> dict[str, float]:
        """By group, seconds between two moments of the monotonic clock, to a look's accuracy."""
        before = max((look for look in self._looks if look[0] <= began), default=self._looks[0])
        after = min((look for look in self._looks if look[0] >= ended), default=self._looks[-1])
        return {name: s - before[1].get(name, 0.0) for name, s in after[1].items()}


@contextmanager
def watched(source: EmbeddedPostgres, **others: EmbeddedPostgres) -> Iterator[Spent]:
    """Look at the servers' processes while the block runs.

    Args:
        source: its walsenders are a group of their own; its other processes are another.
        others: further servers, by the name of their group.
    """
    spent, is_over = Spent(), threading.Event()
    roots = {SOURCE: source} | others
    servers = {name: psutil.Process(server.process_id) for name, server in roots.items()}
    #: By process, its group and its time; of those that have ended, too.
    seen: dict[tuple[int, float], tuple[str, float]] = {}

    def look() -> None:
        for name, server in servers.items():
            for process in (server, *server.children()):
                with suppress(psutil.NoSuchProcess):
                    title = " ".join(process.cmdline())
                    is_sender = name == SOURCE and "walsender" in title
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    seen[key] = (WALSENDERS if is_sender else name, times.user + times.system)
        total = {ITSELF: time.process_time()}
        for group, seconds in seen.values():
            total[group] = total.get(group, 0.0) + seconds
        spent.add(total)

    def run() -> None:
        while not is_over.wait(_LOOK_S):
            look()

    look()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        is_over.set()
        thread.join()
        look()
