"""A process that writes states or holds a lock, told what to do on its stdin.

``state_worker MODE URI STATE_ID ARGUMENT``; stdout says what it did.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.synchronize import Barrier

from meltano.core.state_store.base import MeltanoState

from etl_dagster.integrations.meltano.backend import PostgresStateBackend
from etl_dagster.integrations.meltano.states.errors import StateStorageError
from etl_dagster.integrations.meltano.states.storage import StateStorage

_FORK = multiprocessing.get_context("fork")


def say(line: str) -> None:
    print(line, flush=True)


def update(uri: str, state_id: str, count: str) -> None:
    """Many processes, each with 25 partial updates of keys of its own, through Meltano's `update`.

    They are forked, so that Meltano is imported once; nothing was connected before.
    """
    barrier = _FORK.Barrier(int(count))
    processes = [
        _FORK.Process(target=_update, args=(uri, state_id, f"w{number}", barrier))
        for number in range(int(count))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    say(f"exit codes {sorted({process.exitcode for process in processes})}")


def _update(uri: str, state_id: str, name: str, barrier: Barrier) -> None:
    backend = PostgresStateBackend(uri, lock_timeout_seconds=10, lock_retry_seconds=1)
    backend.migrate()
    barrier.wait()
    for number in range(25):
        bookmarks = {f"{name}-{number}": number}
        backend.update(MeltanoState(state_id, {"singer_state": {"bookmarks": bookmarks}}, {}))


def hold(uri: str, state_id: str, argument: str) -> None:
    """Hold the lock, having read (`argument` "read") or not, and then write under it."""
    storage = StateStorage.from_uri(uri, {"lock_timeout_seconds": 1})
    try:
        with storage.lock(state_id):
            if argument == "read":
                storage.get(state_id)
            say("held")
            sys.stdin.readline()
            storage.set(state_id, completed={"by": "worker"})
        say("written")
    except StateStorageError as error:
        say(type(error).__name__)


def lease(uri: str, state_id: str, seconds: str) -> None:
    """Hold the run lease."""
    storage = StateStorage.from_uri(uri, run_id="the-run")
    with storage.run_lease(state_id, lease_seconds=float(seconds)):
        say("held")
        sys.stdin.readline()
    say("released")


def main() -> None:
    _, mode, *arguments = sys.argv
    {"update": update, "hold": hold, "lease": lease}[mode](*arguments)
