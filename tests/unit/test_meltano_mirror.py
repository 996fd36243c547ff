"""When positions are written next to a pipeline, with clocks that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from etl_dagster.config import parse_config
from etl_dagster.integrations.meltano.positions.memory import load_notices
from etl_dagster.integrations.meltano.positions.mirror import PositionMirror
from etl_dagster.integrations.meltano.positions.mirrored import PositionWrite
from etl_dagster.integrations.meltano.positions.verdicts import StateRow
from etl_dagster.integrations.meltano.states.errors import StateStorageError
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.stores.memory import MemoryStore

CONFIG = {
    "pipeline": "shop",
    "source": {"dsn": "postgresql://nowhere/shop", "publication": "p"},
    "destination": {"type": "memory"},
    "meltano": {"interval_s": 30},
}
TABLES = 1_000


@dataclass
class Place:
    """Where states are; reading and writing take the CPU time that a test chooses."""

    read_s: float = 0.0
    write_s: float = 0.0
    clock_s: float = 0.0
    rows: dict[str, StateRow] = field(default_factory=dict)
    #: The IDs that each transaction wrote.
    transactions: list[list[str]] = field(default_factory=list)
    when_written: Callable[[], None] = lambda: None
    #: Being written by another process.
    busy: frozenset[str] = frozenset()

    def migrate(self) -> None:
        pass

    def place(self) -> str:
        return "here"

    def close(self) -> None:
        pass

    def read(self, state_ids: Iterable[str]) -> dict[str, StateRow]:
        self.clock_s += self.read_s
        return dict(self.rows)

    def write_each(self, writes: Sequence[PositionWrite]) -> dict[str, int]:
        free = [write for write in writes if write.position.state_id not in self.busy]
        self._put(free)
        ids = [write.position.state_id for write in free]
        return {state_id: self.rows[state_id].version for state_id in ids}

    def write(self, write: PositionWrite) -> bool:
        self._put([write])
        return True

    def _put(self, writes: Sequence[PositionWrite]) -> None:
        self.clock_s += self.write_s * len(writes)
        for write in writes:
            position = write.position
            row = StateRow(
                (write.state.expected_version or 0) + 1, position.to_state(write.note), True
            )
            self.rows[position.state_id] = row
        self.transactions.append([write.position.state_id for write in writes])
        self.when_written()


def status(confirmed: int, tables: int = TABLES) -> PipelineStatus:
    names = [f"public.t{place}" for place in range(tables)]
    return cast(
        PipelineStatus,
        Status(
            str(Lsn(confirmed)),
            {
                name: TableStatus(table_id=place, name=name, state="ready", state_id=name)
                for place, name in enumerate(names)
            },
        ),
    )


@dataclass
class Status:
    """The part of a status that the mirror reads."""

    confirmed_lsn: str
    tables: dict[str, TableStatus]
    epoch: int = 0


def mirror_of(place: Place, now: Callable[[], PipelineStatus]) -> PositionMirror:
    store = MemoryStore()
    store.update_table_replication_states([(t, Ready(Lsn(1))) for t in range(TABLES)])
    return PositionMirror(
        parse_config(CONFIG, {}),
        store,
        now,
        cast(Any, place),
        now_s=lambda: place.clock_s,
        cpu_s=lambda: place.clock_s,
    )


def test_the_pause_counts_what_finding_took_and_not_what_writing_took() -> None:
    writing = Place(read_s=0.01, write_s=0.01)
    assert mirror_of(writing, lambda: status(5))._turn(is_last=False) == pytest.approx(2.0)
    assert writing.clock_s == pytest.approx(10.01)

    finding = Place(read_s=0.05)
    assert mirror_of(finding, lambda: status(5))._turn(is_last=False) == pytest.approx(10.0)


def test_many_positions_take_few_transactions_and_other_writers_are_waited_for() -> None:
    place = Place(busy=frozenset({"dev:shop-to-memory:public.t7"}))
    mirror_of(place, lambda: status(5))._turn(is_last=False)
    assert sorted(map(len, place.transactions)) == [1, 99, *([100] * 9)]
    assert len(place.rows) == TABLES


def test_a_stop_interrupts_the_pass_under_way_and_the_last_pass_writes_everything() -> None:
    place = Place(write_s=0.01)
    told = [status(5), status(6)]
    mirror = mirror_of(place, lambda: told.pop(0))
    place.when_written = mirror._stop.set
    mirror.start()
    mirror._thread.join(30)
    assert not mirror._thread.is_alive()

    assert not told
    assert list(map(len, place.transactions)) == [100] * 11
    bookmarks = [(row.state or {})["singer_state"]["bookmarks"] for row in place.rows.values()]
    assert {mark["lsn"] for by_stream in bookmarks for mark in by_stream.values()} == {6}


def test_the_last_pass_writes_new_phases_before_positions_that_only_moved() -> None:
    place = Place()
    now = status(5, tables=300)
    mirror = mirror_of(place, lambda: now)
    mirror._turn(is_last=False)
    known = set(place.rows)
    place.transactions.clear()

    now = status(6)
    mirror._turn(is_last=True)
    assert all(known.isdisjoint(ids) for ids in place.transactions[:7])
    assert known == {state_id for ids in place.transactions[7:] for state_id in ids}


def test_the_problem_that_is_shown_is_the_latest() -> None:
    """After the server is back, its user may have lost a right: the old advice would not help."""
    place = Place()
    mirror = mirror_of(place, lambda: status(5, tables=1))
    mirror._turn(is_last=False)
    assert isinstance(mirror._store, MemoryStore)
    for reason in ("the server is away", "the role may not do this"):
        mirror._say_problem(StateStorageError(reason), is_first=False)
        assert load_notices(mirror._store)[1] == reason


def test_two_pipelines_of_one_name_that_write_the_same_states_are_warned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both would be right by their own store, and each would hide what the other shows."""
    place = Place()
    one = mirror_of(place, lambda: status(5, tables=2))
    one._turn(is_last=False)
    one._turn(is_last=True)
    assert "another pipeline" not in caplog.text

    other = mirror_of(place, lambda: status(7, tables=2))
    other._turn(is_last=True)
    one._turn(is_last=True)
    one._turn(is_last=True)
    assert caplog.text.count("another pipeline of the same name writes it") == 1
