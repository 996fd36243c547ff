"""Whose turn it is with the DuckDB file: the pipeline keeps it only while no reader wants it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.destinations.duckdb import file as duckdb_file
from etl_dagster.destinations.duckdb.turns import Holding
from etl_dagster.errors import DestinationUnreachable
from etl_dagster.model.events import EventBatch
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, end_of_copy, insert
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    """A destination that keeps the file open until there is a reason to close it."""
    for_ever = Holding(
        linger_s=3600.0, busy_linger_s=3600.0, longest_s=3600.0, longest_catch_up_s=3600.0
    )
    destination = DuckDBDestination(path, holding=for_ever)
    destination.startup(MemoryStore())
    destination.write_table_rows(ORDERS, end_of_copy("copy"))
    yield destination
    destination.shutdown()


def one_order(stream: Transactions, number: int, *, more_follows: bool) -> EventBatch:
    return replace(batch(stream.commit(insert(ORDERS, id=number))), more_follows=more_follows)


def test_the_file_is_free_for_any_reader_after_a_batch_that_is_not_full(
    destination: DuckDBDestination, path: Path
) -> None:
    """Such as the duckdb shell, which can't announce that it waits."""
    destination.write_events(one_order(Transactions(), 1, more_follows=False))

    assert _read_when_free(path) == [1]


def test_the_file_stays_open_while_full_batches_come(
    destination: DuckDBDestination, path: Path
) -> None:
    destination.write_events(one_order(Transactions(), 1, more_follows=True))

    with pytest.raises(duckdb.IOException, match="lock"):
        _read_in_another_process(path)


def test_a_reader_that_waits_gets_its_turn_between_two_batches(
    destination: DuckDBDestination, path: Path
) -> None:
    stream, seen = Transactions(), threading.Event()
    destination.write_events(one_order(stream, 0, more_follows=True))

    def read() -> None:
        query(path, "FROM public.orders", lock_timeout_s=PATIENCE_S)
        seen.set()

    reader = threading.Thread(target=read)
    reader.start()
    number, deadline = 0, time.monotonic() + PATIENCE_S
    while not seen.is_set() and time.monotonic() < deadline:
        number += 1
        destination.write_events(one_order(stream, number, more_follows=True))
    reader.join()

    assert seen.is_set()
    destination.shutdown()
    assert len(query(path, "FROM public.orders")) == number + 1


def test_two_readers_waiting_for_the_file_both_time_out(path: Path) -> None:
    """Even the one that waits for the other one's turn to end."""
    lock = duckdb_file.lock_of(path)
    failures: list[DestinationUnreachable] = []

    def read() -> None:
        with pytest.raises(DestinationUnreachable, match="in use by another process") as caught:
            query(path, "SELECT 1", lock_timeout_s=0.1)
        failures.append(caught.value)

    duckdb.connect(str(path)).close()
    with lock:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    assert len(failures) == 2


def _read_when_free(path: Path) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _read_in_another_process(path)
        except duckdb.IOException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _read_in_another_process(path: Path) -> list[int]:
    """As the duckdb shell does. In this process, DuckDB would share the open database."""
    code = (
        "import duckdb, json, sys\n"
        "try:\n"
        "    with duckdb.connect(sys.argv[1], read_only=True) as connection:\n"
        "        [row] = connection.execute('SELECT list(id) FROM public.orders').fetchall()\n"
        "        print(json.dumps(row[0]))\n"
        "except duckdb.IOException as error:\n"
        "    print(str(error), file=sys.stderr)\n"
        "    sys.exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise duckdb.IOException(done.stderr)
    found: list[int] = json.loads(done.stdout)
    return found
