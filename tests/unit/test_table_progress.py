"""What a command shows of the tables that it has copied or repaired."""

from __future__ import annotations

import io
import threading
from datetime import UTC, datetime

import pytest
from rich.console import Console

from etl_dagster.cli.table_progress import TableProgress, follow_copies
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import (
    DataSync,
    Errored,
    FinishedCopy,
    ManualRetry,
    Ready,
    TableState,
    TimedRetry,
)
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.stores.memory import MemoryStore

NAMES = {7: "public.orders"}
COPIED = TableStatus(
    7, "public.orders", "data_sync", "id", copy_chunks_done=1, copy_chunks_total=4,
    copy_rows_done=1_500_000, copy_rows_estimated=4_000_000, copy_rows_per_second=62_500.0,
)  # fmt: skip


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Copying(MemoryStore):
    """A store whose table has another state each time that the states are loaded."""

    def __init__(self, *states: TableState) -> None:
        super().__init__()
        self.lease = self.acquire_lease("apply")
        self._left = list(states)
        self.load_table_replication_states()

    def load_table_replication_states(self) -> None:
        super().load_table_replication_states()
        if self._left:
            self.update_table_replication_states([(7, self._left.pop(0))])


def test_a_terminal_shows_a_copy_as_a_running_pipeline_does() -> None:
    store, console = Copying(DataSync()), terminal()
    status = PipelineStatus("shop", "duckdb", "streaming", tables={COPIED.name: COPIED})
    store.publish_status("apply", status.to_json())
    with TableProgress(store, NAMES, working="being copied", console=console) as progress:
        progress.look()

    assert "1,500,000 of ~4,000,000" in drawn(console)
    assert "62,500/s, 40 s left" in drawn(console)


def test_many_tables_of_one_state_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    store = Copying(DataSync())
    store.update_table_replication_states([(table_id, DataSync()) for table_id in range(100)])
    many = {table_id: f"public.t{table_id:03}" for table_id in range(100)}
    plain = Console(file=io.StringIO())
    with TableProgress(store, many, working="being copied", console=plain) as progress:
        progress.look()

    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("public.t009 and 90 more: being copied")


def test_a_screen_that_is_too_low_shows_the_tables_first_that_are_not_done() -> None:
    store, console = Copying(DataSync()), terminal()
    many = {table_id: f"public.t{table_id:03}" for table_id in range(100)}
    ready: list[tuple[int, TableState]] = [(table_id, Ready(Lsn(1))) for table_id in range(99)]
    store.update_table_replication_states([*ready, (99, DataSync())])
    with TableProgress(store, many, working="being copied", console=console) as progress:
        progress.look()

    assert "public.t099" in drawn(console)


def test_without_a_terminal_each_state_is_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    store = Copying(DataSync(), DataSync(), FinishedCopy())
    plain = Console(file=io.StringIO())
    with TableProgress(
        store, NAMES, working="being repaired", console=plain, clock=lambda: now
    ) as progress:
        for _ in range(3):
            progress.look()
            now += 1.0
            store.load_table_replication_states()

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "public.orders: being repaired",
        "public.orders: rows are there; applying what changed meanwhile",
    ]


def test_copies_are_followed_until_each_table_is_streamed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = Errored("locked", "Wait.", TimedRetry(datetime.now(UTC), attempt=1))
    store = Copying(DataSync(), failed, FinishedCopy(), Ready(Lsn(1)))
    follow_copies(store, NAMES, threading.Event(), console=terminal())

    assert "public.orders is copied, and streamed from now on." in capsys.readouterr().out


def test_a_table_that_waits_for_an_operator_ends_the_view(
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Copying(DataSync(), Errored("no room", "Make room.", ManualRetry()))
    follow_copies(store, NAMES, threading.Event(), console=terminal())

    assert "public.orders stopped: no room. Make room." in capsys.readouterr().out


def test_the_end_of_the_pipeline_ends_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    store = Copying(DataSync())
    assert store.lease is not None
    store.lease.release()
    follow_copies(store, NAMES, threading.Event(), console=terminal())

    assert "its next start resumes the copies" in capsys.readouterr().out


def test_a_command_that_prints_to_a_file_does_not_wait() -> None:
    """The copy would never end here."""
    follow_copies(
        Copying(DataSync()), NAMES, threading.Event(), console=Console(file=io.StringIO())
    )


def test_ctrl_c_ends_the_view_and_says_that_the_copies_continue(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted(Copying):
        def load_table_replication_states(self) -> None:
            super().load_table_replication_states()
            if not self._left:
                raise KeyboardInterrupt

    store = Interrupted(DataSync(), DataSync())
    follow_copies(store, NAMES, threading.Event(), console=terminal())

    assert "The copies continue" in capsys.readouterr().out
