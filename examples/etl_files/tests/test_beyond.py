"""What the suites can't know of: files, their names, and processes that are killed."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from etl_dagster.errors import DestinationError, DestinationUnreachable, StoreError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    ORDERS,
    VISITS,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    update,
)

from etl_files import JsonLinesDestination, SharedSqliteStore, read_lines, read_table
from etl_files.table_file import TableFile

HOLDS_A_LEASE = """
import sys
from pathlib import Path
from etl_files import SharedSqliteStore
lease = SharedSqliteStore(Path(sys.argv[1]), "shop").acquire_lease("apply")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def destination(tmp_path: Path) -> JsonLinesDestination:
    destination = JsonLinesDestination(tmp_path / "tables")
    destination.startup(MemoryStore())
    return destination


def file_of(destination: JsonLinesDestination, name: str) -> Path:
    return destination.folder / f"public.{name}.jsonl"


def test_a_lease_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SharedSqliteStore(path, "shop")
    command = [sys.executable, "-c", HOLDS_A_LEASE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert store.is_leased("apply")
        assert store.acquire_lease("apply") is None
        holder.kill()

    assert not store.is_leased("apply")
    lease = store.acquire_lease("apply")
    assert lease is not None
    lease.release()


def test_the_epochs_of_a_new_file_are_larger_than_those_of_the_one_before(tmp_path: Path) -> None:
    """The destination remembers them, though the store was removed."""
    first = SharedSqliteStore(tmp_path / "first.db", "shop")
    epochs = [first.take_epoch() for _ in range(3)]

    assert SharedSqliteStore(tmp_path / "second.db", "shop").take_epoch() > epochs[0]


def test_a_file_has_one_pipeline(tmp_path: Path) -> None:
    SharedSqliteStore(tmp_path / "state.db", "shop").take_epoch()
    other = SharedSqliteStore(tmp_path / "state.db", "bank")

    for look in (other.check, other.take_epoch):
        with pytest.raises(StoreError, match=r"state_store\.path: .* is of the pipeline 'shop'"):
            look()


def test_a_file_that_was_only_begun_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    store = SharedSqliteStore(path, "shop")

    assert store.check() == f"{path}: made at the start"
    store.take_epoch()
    assert store.check() == str(path)


def test_a_file_that_is_not_a_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("a letter to a friend, longer than the header of a database " * 10)
    before = path.read_bytes()
    store = SharedSqliteStore(path, "shop")

    for look in (store.check, store.take_epoch):
        with pytest.raises(StoreError, match=r"state_store\.path: .*not a database"):
            look()
    assert path.read_bytes() == before


def test_a_line_that_was_cut_is_written_again(destination: JsonLinesDestination) -> None:
    stream = Transactions()
    first = stream.commit(insert(VISITS, page="/", at=1))
    second = stream.commit(insert(VISITS, page="/" * 100_000, at=2))
    destination.write_events(batch(first + second))
    path = file_of(destination, "visits")
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(whole) - 50_000)

    assert [row["at"] for row in read_table(path)] == ["1"]
    destination.write_events(batch(first + second))
    assert [row["at"] for row in read_table(path)] == ["1", "2"]
    assert len([line for line in read_lines(path) if line["type"] == "insert"]) == 2


def test_a_batch_of_which_a_part_cannot_be_written_leaves_nothing(
    destination: JsonLinesDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Transactions()
    events = batch(stream.commit(insert(VISITS, page="/", at=1), insert(ORDERS, id=1)))

    def no_space(self: TableFile, lines: bytes) -> None:
        if "orders" in self.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, lines)

    append = TableFile.append
    with monkeypatch.context() as full:
        full.setattr(TableFile, "append", no_space)
        with pytest.raises(DestinationUnreachable, match="No space left"):
            destination.write_events(events)
    assert read_table(file_of(destination, "visits")) == []

    destination.write_events(events)
    assert len(read_table(file_of(destination, "visits"))) == 1


def test_two_tables_can_swap_their_names(destination: JsonLinesDestination) -> None:
    def named(table_id: int, name: str, snapshot: int = 0) -> TableSchema:
        columns = [column("id", INT4, 1, key=1)]
        return table(columns, table_id=table_id, name=name, snapshot=snapshot)

    stream = Transactions()
    first, second = named(1, "a"), named(2, "b")
    destination.write_events(batch(stream.commit(insert(first, id=1), insert(second, id=2))))
    first, second = named(1, "b", 900), named(2, "a", 900)
    changes = stream.commit(
        relation(first), insert(first, id=11), relation(second), insert(second, id=22)
    )
    destination.write_events(batch(changes))

    assert [row["id"] for row in read_table(file_of(destination, "b"))] == [1, 11]
    assert [row["id"] for row in read_table(file_of(destination, "a"))] == [2, 22]
    assert len(list(destination.folder.glob("*.jsonl"))) == 2


def test_a_key_that_got_a_wider_type_is_still_found(destination: JsonLinesDestination) -> None:
    """The one is a number in JSON, the other a string."""
    narrow = table([column("id", INT4, 1, key=1), column("n", INT4, 2)])
    wide = table([column("id", INT8, 1, key=1), column("n", INT4, 2)], snapshot=900)
    destination.write_table_rows(
        narrow, chunk("copy-1", 0, narrow, [{"id": 1, "n": 1}, {"id": 2, "n": 2}])
    )
    destination.write_table_rows(narrow, end_of_copy("copy-1"))
    stream = Transactions()
    changes = stream.commit(relation(wide), update(wide, id=1, n=5), delete(wide, id=2))
    destination.write_events(batch(changes))

    assert read_table(file_of(destination, "orders")) == [{"id": "1", "n": 5}]


def test_a_file_of_another_program_is_not_replaced(destination: JsonLinesDestination) -> None:
    path = file_of(destination, "orders")
    path.write_text('{"mine": true}\n')

    with pytest.raises(DestinationError, match="not a file of this destination"):
        destination.write_table_rows(ORDERS, end_of_copy("copy-1"))
    with pytest.raises(DestinationError, match="not a file of this destination"):
        destination.write_events(batch(Transactions().commit(insert(ORDERS, id=1))))
    assert path.read_text() == '{"mine": true}\n'


def test_the_first_line_tells_where_the_changes_begin(destination: JsonLinesDestination) -> None:
    destination.write_table_rows(ORDERS, end_of_copy("copy-1", 4096))

    [first] = read_lines(file_of(destination, "orders"))
    assert (first["table"], first["copy_id"]) == ("public.orders", "copy-1")
    assert Lsn.parse(first["replay_from"]) == Lsn(4096)


def test_names_that_no_file_can_have_are_written_otherwise(
    destination: JsonLinesDestination,
) -> None:
    odd = table([column("id", INT4, 1, key=1)], name="../a.b/Ünï")
    destination.write_table_rows(odd, end_of_copy("copy-1"))

    [path] = destination.folder.glob("*.jsonl")
    assert path.name == "public.%2E%2E%2Fa%2Eb%2FÜnï.jsonl"
