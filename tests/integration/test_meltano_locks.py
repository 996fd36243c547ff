"""Locks are rows that expire: visible while held, free soon after a crash, fenced after a stall."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.integrations.meltano.states.errors import StateLocked, StateLockLost
from etl_dagster.integrations.meltano.states.storage import (
    StateStorage,
    StorageOptions,
    locate,
)
from tests.support.database import Database
from tests.support.forked import PIPE, Forked
from tests.support.meltano import open_storage, state_uri
from tests.support.pooler import needs_pgbouncer, pgbouncer
from tests.support.waiting import PATIENCE_S


class Worker:
    """A process of `tests.support.state_worker`."""

    def __init__(self, *arguments: str) -> None:
        self.process = Forked(
            "tests.support.state_worker:main",
            ("tests.support.state_worker",),
            ["state_worker", *arguments],
            cwd=Path.cwd(),
            stdin=PIPE,
            stdout=PIPE,
        )

    def receive(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def resume(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@contextmanager
def worker(*arguments: str) -> Iterator[Worker]:
    started = Worker(*arguments)
    try:
        yield started
    finally:
        started.kill()
        for stream in (started.process.stdin, started.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def storage(newest_database: Database) -> Iterator[StateStorage]:
    """Its locks expire soon unless they are renewed."""
    opened = open_storage(newest_database, lock_timeout_seconds=1, lock_wait_seconds=PATIENCE_S)
    yield opened
    opened.close()


@pytest.fixture
def steady(newest_database: Database) -> Iterator[StateStorage]:
    """Its locks are not renewed within a test, and don't expire on a busy machine."""
    opened = open_storage(
        newest_database, lock_timeout_seconds=PATIENCE_S, lock_wait_seconds=PATIENCE_S
    )
    yield opened
    opened.close()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.01)


def test_a_lock_is_a_row_that_names_its_owner(steady: StateStorage) -> None:
    tokens = []
    for _ in range(2):
        with steady.lock("a") as lease:
            [row] = steady.locks()
            assert (row.state_id, row.kind) == ("a", "write")
            assert f"@{row.host}:{row.pid}" in row.owner
            assert row.fencing_token == lease.fencing_token
            assert row.acquired_at == row.renewed_at < row.expires_at
            tokens.append(row.fencing_token)
        assert steady.locks() == []
    assert tokens[0] < tokens[1]


def test_partial_updates_of_eight_processes_all_survive(newest_database: Database) -> None:
    uri = state_uri(newest_database)
    with worker("update", uri, "dev:a-to-b", "8") as workers:
        assert workers.receive() == "exit codes [0]"
    [stored] = open_storage(newest_database).get_all()
    bookmarks = stored.merged()["singer_state"]["bookmarks"]
    assert bookmarks == {f"w{n}-{i}": i for n in range(8) for i in range(25)}
    assert stored.version == 200


@pytest.mark.parametrize("argument", ["read", "nothing"])
def test_a_writer_killed_in_the_lock_holds_up_the_next_one_no_longer_than_its_lease(
    newest_database: Database, caplog: pytest.LogCaptureFixture, argument: str
) -> None:
    storage = open_storage(newest_database, lock_timeout_seconds=1, lock_wait_seconds=PATIENCE_S)
    storage.set("a", completed={"by": "us"})
    with worker("hold", state_uri(newest_database), "a", argument) as dead:
        assert dead.receive() == "held"
        [left] = storage.locks()
        dead.kill()
        with caplog.at_level(logging.WARNING, "etl_dagster"), storage.lock("a") as lease:
            [taken] = storage.locks()
    assert taken.acquired_at >= left.expires_at
    assert taken.fencing_token == lease.fencing_token > left.fencing_token
    assert f"took over the expired write lock of 'a' from {left.owner}" in caplog.text
    stored = storage.get("a")
    assert stored is not None
    assert stored.completed_object() == {"by": "us"}
    storage.close()


@pytest.mark.parametrize("expires_at", ["9999-12-31", "now() + interval '3 hours'", "infinity"])
def test_a_lock_that_would_never_end_blocks_no_one(
    storage: StateStorage, newest_database: Database, expires_at: str
) -> None:
    """Written by hand, or left by a crash before the server's clock was set back."""
    with worker("hold", state_uri(newest_database), "a", "nothing") as dead:
        assert dead.receive() == "held"
        dead.kill()
    value = expires_at if "now()" in expires_at else f"'{expires_at}'"
    newest_database.execute(f"UPDATE meltano_state_locks SET expires_at = {value}")
    hurried = open_storage(newest_database, lock_wait_seconds=1)
    with hurried.lock("a"):
        hurried.set("a", completed={"n": 1})
    hurried.close()


@pytest.mark.parametrize("argument", ["read", "nothing"])
def test_a_stalled_writer_writes_nothing_when_it_wakes_up(
    storage: StateStorage, newest_database: Database, argument: str
) -> None:
    with worker("hold", state_uri(newest_database), "a", argument) as stalled:
        assert stalled.receive() == "held"
        stalled.process.send_signal(signal.SIGSTOP)
        with storage.lock("a"):
            storage.set("a", completed={"by": "us"})
        stalled.process.send_signal(signal.SIGCONT)
        stalled.resume()
        assert stalled.receive() in ("StateLockLost", "StateChanged")
    stored = storage.get("a")
    assert stored is not None
    assert stored.completed_object() == {"by": "us"}


def test_a_lock_is_renewed_while_its_owner_lives(
    storage: StateStorage, newest_database: Database
) -> None:
    other = open_storage(newest_database, lock_wait_seconds=0)
    with storage.lock("a"):
        [first] = storage.locks()
        wait_until(lambda: storage.locks()[0].renewed_at > first.expires_at)
        with pytest.raises(StateLocked) as refused, other.lock("a"):
            pass
        assert first.owner in refused.value.reason
        assert "since" in refused.value.reason
        storage.set("a", completed={"n": 1})
        # The same while its transaction is open.
        assert storage.get("a") is not None
        with pytest.raises(StateLocked, match="since") as refused, other.lock("a"):
            pass
        assert first.owner in refused.value.reason
    assert other.list_ids() == ["a"]
    other.close()


def test_a_lock_whose_row_is_gone_writes_nothing(
    storage: StateStorage, newest_database: Database
) -> None:
    def write(what: Callable[[], object]) -> None:
        with storage.lock("a"):
            newest_database.execute("DELETE FROM meltano_state_locks")
            what()

    for what in (lambda: storage.set("a", completed={"n": 1}), lambda: storage.delete("a")):
        with pytest.raises(StateLockLost):
            write(what)
    assert storage.list_ids() == []


def test_threads_of_one_storage_take_turns(steady: StateStorage) -> None:
    steady.set("a", completed={"n": 0})

    def count() -> None:
        for _ in range(10):
            with steady.lock("a"):
                stored = steady.get("a")
                assert stored is not None
                with steady.lock("a"):  # the same thread may take it again
                    steady.set("a", completed={"n": stored.completed_object()["n"] + 1})

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(count) for _ in range(6)]:
            future.result(PATIENCE_S)
    stored = steady.get("a")
    assert stored is not None
    assert stored.completed_object() == {"n": 60}


def test_a_release_wakes_a_waiting_process(newest_database: Database) -> None:
    """Not the poll: that comes after ten minutes here."""
    patient = open_storage(
        newest_database,
        lock_timeout_seconds=600,
        lock_retry_seconds=600,
        lock_wait_seconds=600,
    )
    taken = threading.Event()

    def wait() -> None:
        with patient.lock("a"):
            taken.set()

    waiter = threading.Thread(target=wait, daemon=True)
    with patient.lock("a"):
        waiter.start()
        # It polls quickly at first, and then listens.
        wait_until(lambda: is_listening(newest_database))
        wait_until(lambda: newest_database.query(AWAITED) == [(True,)])
        assert not taken.is_set()
    waiter.join(PATIENCE_S)
    assert taken.is_set()
    patient.close()


AWAITED = "SELECT awaited FROM meltano_state_locks"


def is_listening(database: Database) -> bool:
    """Whether some connection waits and has done nothing since its LISTEN."""
    return bool(
        database.query(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND query LIKE 'LISTEN%' AND state = 'idle'"
        )
    )


def test_only_one_process_runs_a_state_at_a_time(
    storage: StateStorage, newest_database: Database
) -> None:
    with worker("lease", state_uri(newest_database), "dev:a-to-b", "60") as running:
        assert running.receive() == "held"
        with pytest.raises(StateLocked) as refused, storage.run_lease("dev:a-to-b"):
            pass
        assert f"pid {running.process.pid}" in refused.value.reason
        assert "run the-run" in refused.value.reason
        # The pipeline's own writes go through, and so do other states' runs.
        with storage.lock("dev:a-to-b"), storage.run_lease("dev:c-to-b"):
            storage.set("dev:a-to-b", completed={"n": 1})
        running.resume()
        with storage.run_lease("dev:a-to-b", wait_seconds=PATIENCE_S) as lease:
            assert lease.is_held


def test_the_lease_of_a_dead_run_ends_by_itself(
    storage: StateStorage, newest_database: Database
) -> None:
    with worker("lease", state_uri(newest_database), "a", "1") as dead:
        assert dead.receive() == "held"
        dead.kill()
    with storage.run_lease("a", wait_seconds=20) as lease:
        assert lease.is_held


def test_a_run_that_lost_its_lease_notices(
    storage: StateStorage, newest_database: Database
) -> None:
    with storage.run_lease("a", lease_seconds=1) as lease:
        lease.require_held()
        newest_database.execute("DELETE FROM meltano_state_locks")
        wait_until(lambda: not lease.is_held)
        with pytest.raises(StateLockLost):
            lease.require_held()


def test_a_run_lease_that_cannot_be_released_does_not_hide_what_the_run_did(
    storage: StateStorage, newest_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> None:
        with storage.run_lease("a"):
            newest_database.execute("DROP TABLE meltano_state_locks")
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        run()
    assert "the run lease of 'a' could not be released" in caplog.text
    assert "ends by itself within 60 s" in caplog.text


@needs_pgbouncer
def test_everything_works_behind_a_pooler_in_transaction_mode(
    newest_database: Database,
) -> None:
    """With fewer server connections than writers: waiting writers must not starve the holder."""
    with pgbouncer(newest_database, "transaction", pool_size=2) as dsn:
        port = int(conninfo_to_dict(dsn)["port"] or 0)
        location = locate(state_uri(newest_database, port=port))
        pooled = StateStorage(location, options=StorageOptions(lock_wait_seconds=PATIENCE_S))
        pooled.migrate()

        def write(name: int) -> None:
            own = StateStorage(location, options=StorageOptions(lock_wait_seconds=PATIENCE_S))
            for number in range(5):
                with own.lock("a"):
                    stored = own.get("a")
                    partial = stored.partial_object() if stored else {}
                    own.set("a", partial={**partial, f"{name}-{number}": 1})
            own.merge("a", {f"{name}": json.loads("1")})
            own.close()

        with ThreadPoolExecutor(8) as pool, pooled.run_lease("a"):
            for future in [pool.submit(write, name) for name in range(8)]:
                future.result(2 * PATIENCE_S)
        stored = pooled.get("a")
        assert stored is not None
        assert len(stored.partial_object()) == 48
        assert pooled.locks() == []
        # Nothing is left in sessions that aren't ours.
        leftovers = newest_database.query(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        )
        assert leftovers == [(0,)]
        assert not is_listening(newest_database)
        pooled.close()
