"""What becomes of a Singer target that dies, hangs, rejects, or says nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.destinations.singer import SingerDestination
from etl_dagster.destinations.singer.failures import (
    TargetFailed,
    TargetKeptNothing,
    TargetMissing,
    TargetNotAsked,
    TargetStalled,
)
from etl_dagster.errors import DestinationError, TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import ChunkId, EventBatch, TableRows
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    PRICES,
    VISITS,
    Transactions,
    arrow_rows,
    batch,
    chunk,
    column,
    end_of_copy,
    insert,
    order,
    relation,
    table,
    truncate,
)
from tests.support import singer_target
from tests.support.leaks import PASSWORD
from tests.support.singer_target import Tables, set_fault
from tests.support.waiting import PATIENCE_S, wait_until

Scripted = Callable[..., SingerDestination]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    made: list[SingerDestination] = []

    def make(config: dict[str, Any] | None = None, **settings: Any) -> SingerDestination:
        # For what a target that hangs would still write.
        destination: SingerDestination = singer_target.scripted(
            tmp_path, config, stop_grace_s=0.2, **settings
        )
        destination.startup(MemoryStore())
        made.append(destination)
        return destination

    yield make
    for destination in made:
        destination.interrupt()
        destination.shutdown()


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


def orders(*ids: int) -> EventBatch:
    return batch(Transactions().commit(*(insert(ORDERS, **order(id)) for id in ids)))


def wait(result: Future[None] | None) -> None:
    if result is not None:
        result.result(PATIENCE_S)


def ids(tables: Tables) -> list[int]:
    return sorted(record["id"] for record in tables.records("public-orders"))


# -- what counts as written ----------------------------------------------------------------------


def test_a_write_is_durable_once_its_state_was_written_back(
    scripted: Scripted, tables: Tables
) -> None:
    wait(scripted().write_events(orders(1, 2)))

    assert ids(tables) == [1, 2]


def test_without_its_state_nothing_counts_as_written(scripted: Scripted, tmp_path: Path) -> None:
    set_fault(tmp_path, {"do": "keep_state"})

    with pytest.raises(TargetKeptNothing, match="without writing back the last STATE"):
        wait(scripted().write_events(orders(1)))


def test_a_target_that_closes_its_stdout_has_not_written_back(
    scripted: Scripted, tmp_path: Path
) -> None:
    set_fault(tmp_path, {"do": "close_stdout", "at": 1})

    with pytest.raises(TargetFailed):
        wait(scripted().write_events(orders(1)))


def test_a_state_that_is_not_ours_is_ignored(scripted: Scripted, tmp_path: Path) -> None:
    set_fault(tmp_path, {"do": "garbage", "at": 1}, {"do": "garbage"})
    destination = scripted()

    wait(destination.write_events(orders(1)))
    wait(destination.write_events(orders(2)))

    assert ids(Tables(tmp_path)) == [1, 2]


def test_a_stream_that_was_written_does_not_count_for_another(
    scripted: Scripted, tmp_path: Path, tables: Tables
) -> None:
    """PipelineWise's targets write a stream that is full, and a state with the others' numbers."""
    set_fault(tmp_path, {"do": "exit"})
    destination = scripted({"states": "by_stream", "batch_size": 3}, flush_after_seconds=60)
    visits = batch(Transactions().commit(*(insert(VISITS, page="/", at=n) for n in range(3))))
    [stretch] = destination._stretcher.stretches(visits.tables[VISITS.id])

    with destination._lane.writing({stretch.stream: stretch.header}) as session:
        few = destination.write_events(orders(1))
        for lines in stretch.lines(destination._spelling):
            session.send(lines)
        wait_until(lambda: len(tables.records("public-visits")) == 3)
        many = session.commit({stretch.stream: {}})
    destination.shutdown()

    for result in (few, many):
        with pytest.raises(TargetFailed):
            wait(result)
    assert ids(tables) == []


@pytest.mark.parametrize("ids_", [(), (1, 2), (1, 2, 3)])
def test_a_target_that_writes_back_what_it_has_flushed_answers_whatever_is_left(
    scripted: Scripted, tables: Tables, ids_: tuple[int, ...]
) -> None:
    """PipelineWise's targets end with the state that they had when they last wrote something.

    So the only STATE of a run comes after everything.
    """
    destination = scripted({"states": "by_stream", "batch_size": 2})
    rows = [order(id) for id in ids_]
    if rows:
        wait(destination.write_table_rows(ORDERS, chunk("c", 0, ORDERS, rows)))
    wait(destination.write_table_rows(ORDERS, end_of_copy("c")))

    assert ids(tables) == list(ids_)


def test_targets_that_answer_by_themselves_keep_running(scripted: Scripted, tables: Tables) -> None:
    destination = scripted({"states": "at_once"}, flush_after_seconds=60)
    for number in range(5):
        wait(destination.write_events(orders(number)))

    assert (ids(tables), tables.starts()) == ([0, 1, 2, 3, 4], 1)


def test_a_target_that_does_not_answer_by_itself_is_ended_after_a_pause(
    scripted: Scripted, tables: Tables
) -> None:
    destination = scripted(flush_after_seconds=0.05)
    for number in range(2):
        wait(destination.write_events(orders(number)))

    assert (ids(tables), tables.starts()) == ([0, 1], 2)


def test_writes_at_the_same_time_share_a_run(scripted: Scripted, tables: Tables) -> None:
    destination = scripted()
    together = threading.Barrier(4)

    def rows(index: int) -> TableRows:
        def pieces() -> Iterator[Any]:
            together.wait(PATIENCE_S)  # each has joined a run, and begun to write
            yield arrow_rows(ORDERS, [order(index)])

        return TableRows("c", pieces(), ChunkId("c", index))

    results: list[Future[None]] = []
    threads = [
        threading.Thread(
            target=lambda index=index: results.append(
                destination.write_table_rows(ORDERS, rows(index))
            )
        )
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for result in results:
        wait(result)

    assert (ids(tables), tables.starts()) == ([0, 1, 2, 3], 1)


def test_another_schema_of_a_table_waits_for_the_end_of_a_run(
    scripted: Scripted, tables: Tables
) -> None:
    """Targets of the SDK write what is left of the first schema last."""
    wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=900)
    changes = Transactions().commit(
        insert(ORDERS, **order(1, "old")),
        relation(wider),
        insert(wider, **order(2, extra=5)),
    )

    wait(scripted().write_events(batch(changes)))

    assert [record.get("extra") for record in tables.records("public-orders")] == [None, 5]
    assert tables.starts() == 2


# -- targets that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", [{"at": 1}, {}], ids=["at a record", "at the end"])
def test_a_target_that_dies_is_started_again_from_its_last_state(
    scripted: Scripted, tmp_path: Path, tables: Tables, at: dict[str, int]
) -> None:
    set_fault(tmp_path, {"do": "exit", "code": 3, "says": "no space left", **at})
    destination = scripted()

    with pytest.raises(TargetFailed, match="exit code 3") as raised:
        wait(destination.write_events(orders(1, 2)))
    wait(destination.write_events(orders(1, 2)))

    assert "no space left" in raised.value.reason
    assert raised.value.retryable
    assert ids(tables) == [1, 2]


def test_a_target_that_ends_in_the_middle_as_if_all_were_well_has_not_written(
    scripted: Scripted, tmp_path: Path, tables: Tables
) -> None:
    set_fault(tmp_path, {"do": "exit", "code": 0, "at": 1})
    destination = scripted()

    with pytest.raises(TargetFailed) as raised:
        wait(destination.write_events(orders(1, 2)))
    assert raised.value.retryable
    wait(destination.write_events(orders(1, 2)))

    assert ids(tables) == [1, 2]


def test_a_row_larger_than_any_buffer_arrives_whole(scripted: Scripted, tables: Tables) -> None:
    """As one line; a pipe holds 64 KiB of it at a time."""
    document = "a long text \n" * 400_000
    rows = [order(1, document=document), order(2)]

    wait(
        scripted().write_events(batch(Transactions().commit(*(insert(ORDERS, **r) for r in rows))))
    )

    assert [row["document"] for row in tables.records("public-orders")] == [document, None]


def test_a_target_that_has_written_and_dies_before_its_state_gets_the_same_again(
    scripted: Scripted, tmp_path: Path, tables: Tables
) -> None:
    set_fault(tmp_path, {"do": "half_then_exit"})
    destination = scripted()
    with pytest.raises(TargetFailed):
        wait(destination.write_events(orders(1, 2)))
    assert ids(tables) == [1, 2]

    wait(destination.write_events(orders(1, 2)))

    assert ids(tables) == [1, 2]


def test_a_killed_target_is_reported_with_the_signal(scripted: Scripted, tmp_path: Path) -> None:
    set_fault(tmp_path, {"do": "hang", "at": 1})
    result = scripted().write_events(orders(1))
    os.kill(hanging(tmp_path), signal.SIGKILL)

    with pytest.raises(TargetFailed, match="ended by SIGKILL"):
        wait(result)


@pytest.mark.parametrize("fault", [{"do": "hang"}, {"do": "ignore_input"}])
def test_a_target_that_hangs_is_ended(
    scripted: Scripted, tmp_path: Path, fault: dict[str, str], tables: Tables
) -> None:
    set_fault(tmp_path, fault)
    destination = scripted()
    with ThreadPoolExecutor(1) as pool:
        # More than a pipe holds.
        result = pool.submit(lambda: wait(destination.write_events(orders(*range(20_000)))))
        pid = hanging(tmp_path)
        # The target may be quicker than the thread that has started it.
        wait_until(lambda: destination._lane._session is not None)
        destination._lane._session._stalled_after_s = 0.1

        with pytest.raises(TargetStalled, match=r"nothing for 0\.1 s") as raised:
            wait(result)
    wait_until(lambda: not is_alive(pid))
    assert raised.value.retryable

    wait(destination.write_events(orders(1)))
    assert ids(tables) == [1]


def test_a_slow_source_is_not_taken_for_a_target_that_hangs(
    scripted: Scripted, tables: Tables
) -> None:
    destination = scripted()

    def pieces() -> Iterator[Any]:
        yield arrow_rows(ORDERS, [order(1)])
        session = destination._lane._session
        assert session is not None
        wait_until(lambda: len(tables.received("public-orders")) == 1)
        before, session._stalled_after_s = session._stalled_after_s, 0.01
        assert not threading.Event().wait(0.1)
        session._stalled_after_s = before
        yield arrow_rows(ORDERS, [order(2)])

    wait(destination.write_table_rows(ORDERS, TableRows("c", pieces(), ChunkId("c", 0))))

    assert ids(tables) == [1, 2]


def test_the_table_that_a_target_refuses_is_found_and_the_others_continue(
    scripted: Scripted, tmp_path: Path, tables: Tables
) -> None:
    refused = {"do": "exit", "stream": "public-prices", "says": "bad price 'Miller'", "always": 1}
    set_fault(tmp_path, refused)
    destination = scripted()
    events = batch(
        Transactions().commit(
            insert(ORDERS, **order(1)), insert(PRICES, sku="a", region=1, price=2)
        )
    )

    with pytest.raises(TargetFailed) as first:
        wait(destination.write_events(events))
    with pytest.raises(TableWriteFailed, match=r"does not take the records of public\.prices") as e:
        wait(destination.write_events(events))

    assert e.value.table_id == PRICES.id
    assert ids(tables) == [1]
    for error in (first.value, e.value):
        assert "bad price" in error.reason
        assert "Miller" not in error.reason
    wait(destination.write_events(orders(2)))
    assert ids(tables) == [1, 2]


def test_a_target_that_accepts_nothing_blames_no_table(scripted: Scripted, tmp_path: Path) -> None:
    set_fault(tmp_path, {"do": "exit", "always": True})
    destination = scripted()

    for _ in range(3):
        with pytest.raises(TargetFailed) as raised:
            wait(destination.write_events(orders(1)))
        assert not isinstance(raised.value, TableWriteFailed)


def test_a_slow_target_holds_up_what_is_written_to_it(scripted: Scripted, tmp_path: Path) -> None:
    """Back-pressure: what it has not read stays with us, and memory is bounded."""
    set_fault(tmp_path, {"do": "ignore_input"})
    destination = scripted()
    read = 0

    def pieces() -> Iterator[Any]:
        nonlocal read
        for number in range(1000):
            read = number
            yield arrow_rows(ORDERS, [order(number, "x" * 100_000)])

    raised: list[BaseException] = []

    def write() -> None:
        try:
            destination.write_table_rows(ORDERS, TableRows("c", pieces(), ChunkId("c", 0)))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    hanging(tmp_path)
    wait_until(lambda: destination._lane._session._is_blocked)  # type: ignore[union-attr]
    assert read < 20
    destination.interrupt()
    thread.join(PATIENCE_S)
    assert isinstance(raised[0], TargetNotAsked)


# -- the end -------------------------------------------------------------------------------------


def test_a_stop_ends_what_waits_for_the_target(scripted: Scripted, tmp_path: Path) -> None:
    set_fault(tmp_path, {"do": "hang"})
    destination = scripted()
    result = destination.write_events(orders(1))
    hanging(tmp_path)

    destination.interrupt()

    with pytest.raises(TargetNotAsked):
        destination.write_events(orders(2))
    assert result is not None
    assert not result.done()


def test_a_target_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Otherwise it would write what it still has after what the next process sends."""
    set_fault(tmp_path, {"do": "hang", "at": 1})
    code = (
        "import pathlib, sys, time; from tests.support.singer_target import scripted\n"
        "from etl_dagster.testing.changes import *\n"
        "destination = scripted(pathlib.Path(sys.argv[1]))\n"
        "destination.write_events(batch(Transactions().commit(insert(ORDERS, **order(1)))))\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        pid = hanging(tmp_path)
    finally:
        process.kill()
        process.wait()

    wait_until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_its_settings_are_in_a_private_file_that_is_removed_at_the_end(
    scripted: Scripted, tmp_path: Path
) -> None:
    destination = scripted({"password": PASSWORD})
    wait(destination.write_events(orders(1)))
    path = destination._target._settings_file
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    destination.shutdown()

    assert not path.parent.exists()


def test_no_secret_and_no_row_is_in_an_error(scripted: Scripted, tmp_path: Path) -> None:
    said = f'login as u with {PASSWORD} failed; Key (id)=(4711); {{"note": "Miller"}}'
    set_fault(tmp_path, {"do": "exit", "says": said})

    with pytest.raises(TargetFailed, match="login as u with") as raised:
        wait(scripted({"password": PASSWORD}).write_events(orders(1)))

    for hidden in (PASSWORD, "Miller", "4711"):
        assert hidden not in raised.value.reason


def test_all_output_of_a_target_is_kept_on_request(scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "target.log"
    set_fault(tmp_path, {"do": "exit", "says": "Key (id)=(4711)"})
    with pytest.raises(TargetFailed):
        wait(scripted(stderr_file=path).write_events(orders(1)))

    assert path.read_text() == "Key (id)=(4711)\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- copies and truncates ------------------------------------------------------------------------


def test_a_target_that_does_not_empty_tables_keeps_old_rows_and_says_so(
    scripted: Scripted, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    destination = scripted(activate_version=False)
    for number in (1, 2):
        destination.drop_table_for_copy(ORDERS)
        copy_id = f"copy-{number}"
        wait(destination.write_table_rows(ORDERS, chunk(copy_id, 0, ORDERS, [order(number)])))
        wait(destination.write_table_rows(ORDERS, end_of_copy(copy_id)))

    assert ids(tables) == [1, 2]
    with pytest.raises(TableWriteFailed, match="does not empty tables"):
        destination.write_events(batch(Transactions().commit(truncate(ORDERS))))


@pytest.mark.parametrize(
    ("capabilities", "found"), [("about,activate-version", "empties"), ("about", "does not empty")]
)
def test_whether_a_target_empties_tables_is_what_it_declares(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capabilities: str, found: str
) -> None:
    monkeypatch.setenv("SCRIPTED_CAPABILITIES", capabilities)

    assert f"it {found} tables" in scripted().check()


def test_all_processes_give_the_rows_of_a_copy_one_version(
    scripted: Scripted, tables: Tables
) -> None:
    for index, destination in enumerate([scripted(), scripted()]):
        rows = TableRows(
            "c",
            [arrow_rows(ORDERS, [order(index)])],
            ChunkId("c", index),
            orders(1).marks[0].commit_lsn,
        )
        wait(destination.write_table_rows(ORDERS, rows))
    wait(scripted().write_table_rows(ORDERS, end_of_copy("c", 1000)))

    assert ids(tables) == [0, 1]
    assert {message["version"] for message in tables.received("public-orders")} == {1000}


def test_a_copy_has_the_version_where_its_changes_begin_whatever_came_before(
    scripted: Scripted, tables: Tables
) -> None:
    """A process that still applies what is newer must not remove the rows of another's chunks."""
    late = Transactions(first_lsn=2000).commit(insert(ORDERS, **order(9)))
    copied = TableRows("c", [arrow_rows(ORDERS, [order(1)])], ChunkId("c", 0), Lsn(1000))
    wait(scripted().write_table_rows(ORDERS, copied))
    other = scripted()
    wait(other.write_events(batch(late)))

    wait(other.write_table_rows(ORDERS, end_of_copy("c", 1000)))

    assert ids(tables) == [1, 9]


def test_a_sender_who_has_not_heard_of_the_newest_copy_changes_nothing(
    scripted: Scripted, tables: Tables
) -> None:
    destination = scripted()
    wait(destination.write_table_rows(ORDERS, chunk("c", 0, ORDERS, [order(1)])))
    wait(destination.write_table_rows(ORDERS, end_of_copy("c", 1000)))
    late = Transactions(first_lsn=900).commit(insert(ORDERS, **order(2)))

    result = destination.write_events(batch(late, apply_from={ORDERS.id: Lsn(500)}))

    assert result is None
    assert ids(tables) == [1]


# -- finding it ----------------------------------------------------------------------------------


def test_a_target_is_found_on_path_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Tables
) -> None:
    program = singer_target.program()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    destination = SingerDestination(program.name, config={"folder": str(tmp_path)})
    wait(destination.write_events(orders(1)))
    destination.shutdown()

    assert ids(tables) == [1]


def test_a_target_that_is_not_on_path_says_how_it_is_installed() -> None:
    with pytest.raises(TargetMissing, match="target-nowhere is not on PATH") as raised:
        SingerDestination("target-nowhere").check()

    assert "pipx install target-nowhere" in raised.value.solution
    assert not raised.value.retryable


def test_a_file_that_is_not_a_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "target-x"
    path.write_text("")
    with pytest.raises(TargetMissing, match="can't be run"):
        SingerDestination(str(path)).check()


def test_a_settings_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(DestinationError, match=r"config\.json: is not JSON"):
        singer_target.scripted(tmp_path, config_file=path).check()


def hanging(folder: Path) -> int:
    """The process of a target that hangs by now."""
    path = folder / "hangs"
    wait_until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())
