"""Several processes copy a table together: one leads, and the others take chunks of its plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from etl_dagster.errors import DestinationError, LeaseLost, SourceError, StoreUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.states import DataSync, SyncDone
from etl_dagster.model.stores import ManyTables
from etl_dagster.runtime.copying.chunk_queue import SharedChunks
from etl_dagster.runtime.copying.sharing import begin_sharing, is_wanted, want_shared
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.many import many
from etl_dagster.source.catalog import PublishedTable, fetch_published_tables
from etl_dagster.stores.memory import MemoryStore
from tests.support.copied_table import SLOT_LSN, Fixture
from tests.support.deliveries import ORDERS, schema


@pytest.fixture
def fixture() -> Fixture:
    fixture = Fixture()
    want_shared(fixture.store, ORDERS)
    return fixture


def while_reading(fixture: Fixture, *steps: Callable[[], object]) -> None:
    """What happens while the leader's first chunk is read, and no later one."""

    def all_of_them() -> None:
        for step in steps:
            step()

    fixture.source.while_reading = [all_of_them]


def test_each_chunk_is_copied_once_though_a_helper_takes_some(fixture: Fixture) -> None:
    while_reading(fixture, fixture.help)

    result = fixture.run()

    assert result is not None
    assert (result.row_count, result.chunk_count) == (3, 3)
    assert fixture.source.chunks_read == [0, 1, 2]
    assert fixture.helped == [1, 2]
    assert fixture.ids == [0, 1, 2]
    assert fixture.progress[-1].rows_done == 3


def test_a_copy_that_is_not_to_be_shared_has_no_helpers() -> None:
    """Its worker claims no chunk, so both would copy each."""
    fixture = Fixture()
    while_reading(fixture, fixture.help)

    fixture.run()

    assert (fixture.helped, fixture.source.chunks_read) == ([], [0, 1, 2])


def test_a_table_without_a_key_is_read_by_one_worker_under_its_snapshot(fixture: Fixture) -> None:
    [column] = schema(ORDERS).columns
    keyless = replace(column, primary_key_ordinal=None, is_identity=False)
    fixture.source.table = PublishedTable(replace(schema(ORDERS), columns=(keyless,)), None, 0)
    while_reading(fixture, fixture.help)

    fixture.run()

    assert (fixture.helped, fixture.source.chunks_read) == ([], [0, 1, 2])


def test_the_leader_waits_for_a_chunk_of_a_helper_and_copies_it_when_the_helper_is_gone(
    fixture: Fixture,
) -> None:
    taken: list[SharedChunks] = []

    def take_all() -> None:
        plan = fixture.store.get_copy_plan(ORDERS)
        assert plan is not None
        queue = SharedChunks(fixture.store, ORDERS, plan, waits=False)
        assert queue.take(lambda: False) == plan.chunks[1]
        assert queue.take(lambda: False) == plan.chunks[2]
        assert queue.take(lambda: False) is None
        taken.append(queue)

    waits: list[int] = []

    def helper_dies(timeout_s: float) -> None:
        waits.append(len(fixture.source.chunks_read))
        plan = fixture.store.get_copy_plan(ORDERS)
        assert plan is not None
        for chunk in plan.remaining:
            taken[0].put_back(chunk)

    while_reading(fixture, take_all)
    fixture.store.wait_for_change = helper_dies  # type: ignore[method-assign]

    assert fixture.run() is not None

    assert waits[0] == 1
    assert fixture.source.chunks_read == [0, 1, 2]
    assert isinstance(fixture.state, SyncDone)


def test_the_chunk_that_a_helper_fails_with_is_copied_by_the_leader(fixture: Fixture) -> None:
    class Broken(type(fixture.destination)):  # type: ignore[misc]
        is_broken = False

        def write_table_rows(self, *args: object) -> object:
            if self.is_broken:
                raise DestinationError("broken here")
            return super().write_table_rows(*args)

    fixture.destination = broken = Broken()

    def help_without_success() -> None:
        broken.is_broken = True
        with pytest.raises(DestinationError, match="broken here"):
            fixture.help()
        broken.is_broken = False

    while_reading(fixture, help_without_success)

    assert fixture.run() is not None

    assert (fixture.helped, fixture.source.chunks_read) == ([], [0, 1, 2])
    assert "Errored" not in fixture.store.went
    assert fixture.ids == [0, 1, 2]


def test_the_next_worker_shares_the_copy_of_a_leader_that_died(fixture: Fixture) -> None:
    fixture.has_been_copied(0)
    while_reading(fixture, fixture.help)

    result = fixture.run()

    assert result is not None
    assert (result.copy_id, result.resumed_chunks, fixture.helped) == ("earlier", 1, [2])


def test_after_the_hand_over_the_next_copy_belongs_to_one_worker_again(fixture: Fixture) -> None:
    assert is_wanted(fixture.store, ORDERS)

    fixture.run()

    assert not is_wanted(fixture.store, ORDERS)


def test_a_helper_copies_nothing_of_a_table_altered_meanwhile(fixture: Fixture) -> None:
    """The leader sees it too, and begins another copy."""

    def alter() -> None:
        [column] = schema(ORDERS).columns
        other = replace(column, name="number")
        table = PublishedTable(replace(schema(ORDERS), columns=(other,)), None, 0)
        fixture.source.control.answers = {
            **fixture.source.control.answers,
            fetch_published_tables: lambda *_, **__: [table],
        }
        assert not fixture.help()

    while_reading(fixture, alter)

    fixture.run()

    assert fixture.helped == []


def test_a_helper_learns_what_keeps_it_from_reading(fixture: Fixture) -> None:
    fixture.has_been_copied(0)
    plan = fixture.store.get_copy_plan(ORDERS)
    assert plan is not None
    begin_sharing(fixture.store, ORDERS, plan)
    fixture.source.table = None  # type: ignore[assignment]

    with pytest.raises(SourceError, match=r"public\.table_1 is not in publication"):
        fixture.help()

    assert fixture.state == DataSync()


# -- claims ----------------------------------------------------------------------------------------


def a_plan(copy_id: str = "a", chunks: int = 2) -> CopyPlan:
    made = tuple(CopyChunk(n, ORDERS, n, None) for n in range(chunks))
    return CopyPlan(copy_id, made, {}, SLOT_LSN, datetime(2026, 1, 1, tzinfo=UTC))


def not_over() -> bool:
    return False


def test_a_chunk_is_given_to_one_process_until_it_is_put_back() -> None:
    store, plan = MemoryStore(), a_plan(chunks=1)
    store.store_copy_plan(ORDERS, plan)
    one, other = (SharedChunks(store, ORDERS, plan, waits=False) for _ in range(2))

    chunk = one.take(not_over)

    assert chunk == plan.chunks[0]
    assert other.take(not_over) is None
    assert not other.has_free()
    one.put_back(chunk)
    assert other.take(not_over) == chunk


def test_a_finished_chunk_is_not_given_out_again() -> None:
    store, plan = MemoryStore(), a_plan(chunks=1)
    store.store_copy_plan(ORDERS, plan)
    one, other = (SharedChunks(store, ORDERS, plan, waits=True) for _ in range(2))
    assert one.take(not_over) is not None
    done = FinishedChunk(0, 1, 1, Lsn(1))
    store.finish_chunk(ORDERS, "a", done)
    one.done(done)

    assert other.take(not_over) is None
    assert other.finished == {0: done}


def test_no_chunk_is_given_out_of_a_replaced_copy() -> None:
    store, plan = MemoryStore(), a_plan()
    store.store_copy_plan(ORDERS, plan)
    queue = SharedChunks(store, ORDERS, plan, waits=True)
    store.store_copy_plan(ORDERS, a_plan("b"))

    with pytest.raises(LeaseLost, match="another copy of table 1 has begun"):
        queue.take(not_over)


def test_a_worker_that_waits_for_the_chunks_of_others_notices_a_stop() -> None:
    store, plan = MemoryStore(), a_plan(chunks=1)
    store.store_copy_plan(ORDERS, plan)
    assert SharedChunks(store, ORDERS, plan, waits=True).take(not_over) is not None
    answers = [False, True]

    with pytest.raises(Stopped):
        SharedChunks(store, ORDERS, plan, waits=True).take(lambda: answers.pop(0))


class _ManyChunks(MemoryStore):
    """Answers for many chunks at once, and counts how many it was asked for at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.plans_read = 0

    def __getattr__(self, name: str) -> Any:
        # The other methods of `ManyTables`, which nothing here uses.
        if name in vars(ManyTables):
            return getattr(many(MemoryStore()), name)
        raise AttributeError(name)

    def get_copy_plan(self, table_id: int) -> CopyPlan | None:
        self.plans_read += 1
        return super().get_copy_plan(table_id)

    def finished_chunks(
        self, table_id: int, copy_id: str, indexes: Collection[int]
    ) -> Mapping[int, FinishedChunk] | None:
        self.asked.append(len(indexes))
        plan = self._plans[table_id]
        assert plan.copy_id == copy_id
        return {index: plan.finished[index] for index in indexes if index in plan.finished}

    def leased(self, names: Collection[str]) -> Collection[str]:
        self.asked.append(len(names))
        return {name for name in names if self.is_leased(name)}


def test_what_a_chunk_costs_does_not_grow_with_their_number() -> None:
    """Two workers take 1,000 chunks in turn; neither reads the plan again."""
    store, plan = _ManyChunks(), a_plan(chunks=1000)
    assert many(store) is store
    store.store_copy_plan(ORDERS, plan)
    seen: list[int] = []
    one, other = (
        SharedChunks(
            store, ORDERS, plan, waits=waits, on_seen=lambda finished: seen.append(len(finished))
        )
        for waits in (True, False)
    )

    taken: list[int] = []
    while (chunk := (one, other)[len(taken) % 2].take(not_over)) is not None:
        taken.append(chunk.index)
        done = FinishedChunk(chunk.index, 1, 1, Lsn(1))
        store.finish_chunk(ORDERS, "a", done)
        (one, other)[(len(taken) - 1) % 2].done(done)

    assert taken == list(range(1000))
    assert store.plans_read == 0
    assert max(store.asked) <= 100
    assert len(store.asked) < 4 * len(taken)
    assert len(one.finished) == 1000
    assert seen[-1] == 1000


def test_chunks_that_many_others_copy_are_passed_over() -> None:
    store, plan = MemoryStore(), a_plan(chunks=250)
    store.store_copy_plan(ORDERS, plan)
    others = SharedChunks(store, ORDERS, plan, waits=False)
    for chunk in plan.chunks[:249]:
        assert others.take(not_over) == chunk
    one = SharedChunks(store, ORDERS, plan, waits=False)

    assert one.has_free()
    assert one.take(not_over) == plan.chunks[249]
    assert one.take(not_over) is None
    assert not one.has_free()


def test_the_claim_of_a_chunk_that_cannot_be_read_is_given_up() -> None:
    class Away(MemoryStore):
        looks = 0

        def get_copy_plan(self, table_id: int) -> CopyPlan | None:
            self.looks += 1
            if self.looks == 2:
                raise StoreUnreachable("away")
            return super().get_copy_plan(table_id)

    store, plan = Away(), a_plan(chunks=1)
    store.store_copy_plan(ORDERS, plan)
    queue = SharedChunks(store, ORDERS, plan, waits=False)

    with pytest.raises(StoreUnreachable):
        queue.take(not_over)

    assert queue.take(not_over) == plan.chunks[0]
