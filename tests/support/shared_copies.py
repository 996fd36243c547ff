"""A table that several steps copy together while it changes, and a gate that holds them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import AssetKey, DagsterInstance

from etl_dagster.config import PipelineConfig, load_config
from tests.support import shared_copy_job
from tests.support.database import Database
from tests.support.waiting import wait_until

ROWS = 60_000
HASH = "select count(*), md5(string_agg(o::text, ',' order by id)) from {} o"


def create_orders(source: Database) -> None:
    """The table, published."""
    source.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text, n int)",
        f"INSERT INTO orders SELECT i, repeat('n', 100), 0 FROM generate_series(1, {ROWS}) i",
        "ANALYZE orders",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )


def write_config(
    source: Database, target: Database, folder: Path, at: Callable[[str], str] = str
) -> PipelineConfig:
    """The pipeline from the source to the target, in ``etl.yaml``.

    Args:
        at: a DSN as it is reached from where the file is read.
    """
    values = {
        "pipeline": "shop",
        "source": {"dsn": at(source.dsn), "publication": "etl_pub"},
        "destination": {"type": "postgres", "dsn": at(target.dsn)},
        "batch": {"max_fill_ms": 50},
        "copy_tables": {"chunk_rows": 2000, "max_connections_per_table": 1},
    }
    path = folder / "etl.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


@contextmanager
def changing(source: Database) -> Iterator[None]:
    """Rows are inserted, moved to the end of the table and deleted for as long as it lasts."""
    stop = threading.Event()

    def change() -> None:
        with source.connect() as connection:
            for i in range(1_000_000):
                connection.execute(
                    "UPDATE orders SET n = n + 1, note = %s WHERE id %% 997 = %s",
                    [f"u{i}", i % 997],
                )
                connection.execute("DELETE FROM orders WHERE id = %s", [1 + 37 * i])
                connection.execute("INSERT INTO orders VALUES (%s, 'new', 0)", [ROWS + 1 + i])
                if stop.wait(0.02):
                    return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def environment(monkeypatch: pytest.MonkeyPatch, folder: Path, workers: int) -> None:
    monkeypatch.setenv(shared_copy_job.CONFIG, str(folder / "etl.yaml"))
    monkeypatch.setenv(shared_copy_job.WORKERS, str(workers))


def materialized(instance: DagsterInstance) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(AssetKey(["shop", "public", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


class Gate:
    """Holds chunks back at the destination, unfinished, until it is opened."""

    def __init__(self, target: Database, *, from_chunk: int = 0) -> None:
        self._target = target
        self._session = target.connect()
        target.execute(
            "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN new; END'",
            "CREATE TRIGGER gate BEFORE INSERT ON _etl.chunks"
            f" FOR EACH ROW WHEN (new.chunk_index >= {from_chunk})"
            " EXECUTE FUNCTION wait_at_gate()",
        )
        self._session.execute("SELECT pg_advisory_lock(7)")

    def waiting(self) -> int:
        """How many chunks wait."""
        [(count,)] = self._target.query(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7"
            " AND NOT granted AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
        return int(count)

    def open(self) -> None:
        self._session.close()


@contextmanager
def once_held(gate: Gate, count: int, act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, does something once so many chunks wait at the gate.

    A block that ends without that fails, at once.
    """
    is_over = threading.Event()

    def wait() -> None:
        wait_until(lambda: is_over.is_set() or gate.waiting() == count)
        assert not is_over.is_set(), f"{count} chunks never waited at the gate"
        act()

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(wait)
        try:
            yield
        finally:
            is_over.set()
        acting.result()
