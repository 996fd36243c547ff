"""Files that aren't ready to be written: half created, damaged, or of another version."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.destinations.duckdb.file import lock_of
from etl_dagster.errors import DestinationError, DestinationTooNew, DestinationUnreachable
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, end_of_copy, insert
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


def new_file(path: Path) -> bytes:
    duckdb.connect(str(path)).close()
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("size", [0, 12, 4096, 8192, 12287])
def test_a_file_that_was_never_finished_counts_as_missing(path: Path, size: int) -> None:
    """A process was killed between its creation and its last header."""
    path.write_bytes(new_file(path)[:size])
    destination = DuckDBDestination(path)

    assert destination.check().endswith("the first start creates it")
    with pytest.raises(DestinationError, match="there is no file"):
        query(path, "SELECT 1")
    destination.startup(MemoryStore())
    destination.write_table_rows(ORDERS, end_of_copy("copy"))
    destination.write_events(batch(Transactions().commit(insert(ORDERS, id=1))))
    destination.shutdown()

    assert query(path, "SELECT id FROM public.orders").to_pylist() == [{"id": 1}]


@pytest.mark.parametrize("content", [b"", b"a text"])
def test_a_file_with_a_write_ahead_log_or_of_another_kind_is_not_replaced(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    wal = Path(f"{path}.wal")
    wal.write_bytes(b"changes")

    for start in (DuckDBDestination(path).check, lambda: query(path, "SELECT 1")):
        with pytest.raises(DestinationError, match="is not a DuckDB file"):
            start()

    assert path.read_bytes() == content
    assert wal.read_bytes() == b"changes"


def test_a_file_of_a_newer_version_of_duckdb_is_named_as_such(path: Path) -> None:
    content = bytearray(new_file(path))
    content[12:20] = struct.pack("<Q", 2**20)
    content[:8] = struct.pack("<Q", _checksum(content[8:4096]))
    path.write_bytes(content)
    destination = DuckDBDestination(path)

    for start in (
        destination.check,
        lambda: destination.startup(MemoryStore()),
        lambda: query(path, "SELECT 1"),
    ):
        with pytest.raises(DestinationTooNew, match="by a newer DuckDB than") as refused:
            start()
        assert "pip install --upgrade duckdb" in refused.value.solution
        assert not refused.value.retryable
    assert path.read_bytes() == content


def test_a_damaged_file_is_not_retried(path: Path) -> None:
    content = bytearray(new_file(path))
    content[100] ^= 1
    path.write_bytes(content)

    with pytest.raises(DestinationError, match="is damaged") as refused:
        query(path, "SELECT 1")
    assert not refused.value.retryable


def _checksum(content: bytes) -> int:
    """As DuckDB keeps it at the beginning of each header."""
    result = 5381
    for (word,) in struct.iter_unpack("<Q", content):
        result ^= (word * 0xBF58476D1CE4E5B9) % 2**64
    return result


def test_a_stop_ends_the_wait_for_another_process_that_has_the_file(path: Path) -> None:
    """Ctrl-C must not wait for as long as the file's holder does."""
    destination = DuckDBDestination(path, lock_timeout_s=10 * PATIENCE_S)
    failures: list[DestinationUnreachable] = []

    def start() -> None:
        try:
            destination.startup(MemoryStore())
        except DestinationUnreachable as failure:
            failures.append(failure)

    waiting = threading.Thread(target=start, daemon=True)
    with lock_of(path):
        waiting.start()
        destination.interrupt()
        waiting.join(PATIENCE_S)
        assert not waiting.is_alive()
    (failure,) = failures
    assert "is in use by another process" in failure.reason

    destination.startup(MemoryStore())  # once the file is free, it can still be written
    destination.shutdown()
