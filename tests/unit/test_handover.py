"""A table goes from its own worker to the apply worker; any order of steps has the same result.

Both workers are whole: stream, session, delivery, states in a store. Only the server is a list of
transactions, and the clock counts turns.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, InsertEvent, TableRows
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    FinishedCopy,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
    check_transition,
)
from etl_dagster.model.stores import ApplyWorker, TableSyncWorker
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.membership.members import Members
from etl_dagster.runtime.showing.metrics import Metrics
from etl_dagster.runtime.streaming.apply_worker import AppliedStream, Known
from etl_dagster.runtime.streaming.catchup import CatchUp
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.rewrites import Rewrites
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.runtime.tenure import Tenure
from etl_dagster.runtime.timing import Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import emit_marker
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS, VISITS, schema
from tests.support.in_turns import Turns
from tests.support.scripted import ManualClock, ScriptedSource, config, drain, worker_parts
from tests.support.waiting import wait_until
from tests.unit import wire

_IDS = RelationColumn("id", 23, -1, True)
Step = Literal["apply", "sync", "commit", "break apply", "break sync"]
#: Where the stream of the pipeline's slot begins.
_BEGIN = 1000


class Wal:
    """Transactions, each with a row of both tables. The hand-over is of ORDERS."""

    def __init__(self) -> None:
        self._frames: list[list[bytes]] = []

    @property
    def end(self) -> Lsn:
        return Lsn(_BEGIN + 100 * len(self._frames))

    def commit(self) -> None:
        number, at = len(self._frames), self.end.offset
        messages = [wire.begin(at)]
        for table_id in (ORDERS, VISITS):
            relation = Relation(table_id, "public", f"table_{table_id}", "d", (_IDS,))
            messages += [wire.relation(relation), wire.insert(table_id, [str(number)])]
        messages.append(wire.commit(at, at + 100))
        self._frames.append([wire.xlog_data(message) for message in messages])

    def frames_from(self, lsn: Lsn) -> Iterator[bytes | None]:
        """The frames of what was committed at or after it, also later; None while there is none."""
        number = (lsn.offset - _BEGIN) // 100
        while True:
            if number < len(self._frames):
                yield from self._frames[number]
                number += 1
            else:
                yield None

    def ids_from(self, lsn: Lsn) -> set[int]:
        return set(range((lsn.offset - _BEGIN) // 100, len(self._frames)))


class WalStream:
    """One frame with each read, and a turn before it."""

    is_over = False

    def __init__(self, world: World, start_lsn: Lsn, session: ReplicationSession) -> None:
        self.start_lsn = start_lsn
        self._world, self._session = world, session
        self._frames = world.wal.frames_from(start_lsn)
        self._is_asked = False

    def open(self) -> None: ...

    def close(self) -> None: ...

    def interrupt(self) -> None: ...

    def confirm(self, lsn: Lsn) -> None: ...

    def request_keepalive(self) -> None:
        self._is_asked = True

    def read(self, timeout_s: float) -> bool:
        self._world.turn()
        frame = next(self._frames)
        if frame is None:
            if not self._is_asked:
                return False
            self._is_asked, frame = False, wire.keepalive(self._world.wal.end.offset)
        return drain(self._session, [frame])


class Store(MemoryStore):
    """Each look at the states, and each change, is a turn."""

    def __init__(self, turn: Callable[[], bool], on_done: Callable[[Lsn], None]) -> None:
        super().__init__()
        self._turn, self._on_done = turn, on_done

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        self._turn()
        return super().get_table_replication_states()

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        self._turn()
        check_transition(expected, new)
        if isinstance(new, SyncDone):
            self._on_done(new.lsn)
        return super().transition_table_state(table_id, expected, new)

    def wait_for_change(self, timeout_s: float) -> bool:
        return self._turn() or super().wait_for_change(timeout_s)


class Seen(MemoryDestination):
    """Notes which worker brought which rows of ORDERS."""

    def __init__(self) -> None:
        super().__init__()
        self.brought: dict[str, list[int]] = {"apply": [], "sync": []}

    def write_events(self, events: EventBatch) -> None:
        who = threading.current_thread().name.split()[0]
        self.brought[who] += [
            event.row["id"]
            for event in events
            if isinstance(event, InsertEvent) and event.schema.id == ORDERS
        ]
        super().write_events(events)


class World:
    """A pipeline's apply worker, and the worker of a table that is copied."""

    def __init__(self, copied_at: int, batch_rows: int) -> None:
        self._batch_rows = batch_rows
        self.turns, self.clock, self.wal = Turns(), ManualClock(), Wal()
        self.turns.on_turn = lambda: self.clock.pass_by(1)
        self.broken: set[str] = set()
        for _ in range(copied_at):
            self.wal.commit()
        #: Consistent point of the table's slot.
        self.slot_lsn = self.wal.end
        self.store, self.destination = Store(self.turn, self._require_durable), Seen()
        for table_id in (ORDERS, VISITS):
            self.store.store_table_schema(schema(table_id))
            described = destination_metadata(schema(table_id), "applied")
            self.store.store_destination_table_metadata(table_id, described)
            self.destination.write_table_rows(schema(table_id), TableRows("copy"))
        self.store.update_table_replication_states(
            [(ORDERS, FinishedCopy()), (VISITS, Ready(Lsn(_BEGIN)))]
        )
        self.tenure = Tenure(self.store)
        self.tenure.begin("scripted")
        self.tenure.take_epoch()
        self.turns.start("apply", self._apply)
        self.turns.start("sync", self._sync)

    def turn(self) -> bool:
        """Let the others continue; then fail, where the schedule says so."""
        is_actor = self.turns.pause()
        name = threading.current_thread().name
        if is_actor and name in self.broken:
            self.broken.remove(name)
            raise SourceUnreachable("the schedule has this worker fail here")
        return is_actor

    def _require_durable(self, lsn: Lsn) -> None:
        """What is reported as done must be at the destination: it is not sent again."""
        before = self.wal.ids_from(self.slot_lsn) - self.wal.ids_from(lsn)
        assert before <= set(self.ids), f"handed over at {lsn} without {before - set(self.ids)}"

    def _parts(self) -> WorkerParts:
        return worker_parts(
            settings=config(batch={"max_rows": self._batch_rows, "max_fill_ms": 20_000}),
            store=self.store,
            destination=self.destination,
            control=ScriptedSource({emit_marker: lambda: self.wal.end}),
            clock=self.clock,
            # In turns.
            timing=Timing(
                idle_confirm_s=10,
                ask_position_s=1,
                refresh_s=8,
                catchup_wait_s=6,
                withdrawn_pause_s=4,
                close_s=20,
                most_markers=3,
            ),
        )

    def _apply(self) -> None:
        parts = self._parts()
        control = parts.control
        while True:
            start = self.progress or Lsn(_BEGIN)
            known = Known(
                OriginCheck(parts.config, self.store),
                Belonging(parts.config, self.store, parts.destination),
                Members(parts.config, self.store, control),
                Rewrites(self.store, control, lambda: ""),
                Renames(self.store, control),
                Metrics(),
            )
            worker = AppliedStream(
                parts,
                known,
                self.tenure,
                open_stream=partial(WalStream, self, start),
                start_lsn=start,
                on_durable=lambda lsn: None,
            )
            try:
                worker.run()
            except SourceUnreachable:
                continue
            return

    def _sync(self) -> None:
        worker = TableSyncWorker(ORDERS)
        parts = self._parts()
        lease = self.store.acquire_lease(f"table:{ORDERS}")
        assert lease is not None
        while True:
            # A worker that follows one that failed begins here, as `TableSync` does.
            state = self.state
            if isinstance(state, SyncDone | Ready):
                return
            assert state is not None
            MemoryStore.transition_table_state(self.store, ORDERS, state, FinishedCopy())
            catch_up = CatchUp(
                parts,
                [schema(ORDERS)],
                lease,
                open_stream=partial(
                    WalStream,
                    self,
                    self.store.get_replication_progress(worker) or self.slot_lsn,
                ),
                worker=worker,
                replay_from=self.slot_lsn,
                must_reach=self.slot_lsn,
            )
            try:
                catch_up.run()
            except SourceUnreachable:
                continue
            return

    # -- what a schedule does --------------------------------------------------------------------

    def do(self, step: Step) -> None:
        match step:
            case "commit":
                self.wal.commit()
            case "break apply" | "break sync":
                self.broken.add(step.removeprefix("break "))
            case _:
                self.turns.resume(step)

    def finish(self) -> None:
        """Nothing is committed any more, and each worker continues in its turn."""
        for _ in range(600):
            if isinstance(self.state, Ready):
                break
            self.do("apply")
            self.do("sync")
        else:
            pytest.fail(f"no hand-over in 600 turns: {self.state}")
        expected = sorted(self.wal.ids_from(self.slot_lsn))
        self.apply_until(lambda: self.ids == expected)

    def apply_until(self, holds: Callable[[], bool]) -> None:
        """Give the apply worker its turns. What it reads is written by a thread in its own time."""

        def does_hold() -> bool:
            for _ in range(20):
                if holds():
                    return True
                self.do("apply")
            return False

        wait_until(does_hold)

    @property
    def state(self) -> TableState | None:
        return self.store.get_table_replication_state(ORDERS)

    @property
    def progress(self) -> Lsn | None:
        return self.store.get_replication_progress(ApplyWorker())

    @property
    def ids(self) -> list[int]:
        return sorted(row["id"] for row in self.destination.rows(f"public.table_{ORDERS}"))


@contextmanager
def world(copied_at: int, batch_rows: int) -> Iterator[World]:
    made = World(copied_at, batch_rows)
    try:
        yield made
    finally:
        made.turns.end()


def schedule(rng: random.Random) -> list[tuple[Step, int]]:
    """Steps, each so many times: mostly a worker that runs for a while as the other one waits."""
    steps: list[tuple[Step, int]] = []
    for _ in range(rng.randrange(10, 60)):
        match rng.randrange(12):
            case 0 | 1:
                steps.append(("commit", rng.randrange(1, 3)))
            case 2:
                steps.append((rng.choice(["break apply", "break sync"]), 1))
            case _:
                steps.append((rng.choice(["apply", "sync"]), rng.choice([1, 2, 4, 8, 16, 32])))
    return steps


@pytest.mark.parametrize("seeds", [range(first, first + 40) for first in (0, 40)], ids=str)
def test_each_change_is_applied_by_one_worker_whatever_the_order(seeds: range) -> None:
    """None is lost between the two, and none is left to both, however often either is restarted."""
    for seed in seeds:
        rng = random.Random(seed)
        with world(rng.randrange(3), rng.choice([1, 3, 1000])) as made:
            for step, times in schedule(rng):
                for _ in range(times):
                    made.do(step)
            made.wal.commit()
            made.finish()

            by_apply, by_sync = (set(made.destination.brought[who]) for who in ("apply", "sync"))
            assert not by_sync & by_apply, f"seed {seed}"
            assert by_sync | by_apply == made.wal.ids_from(made.slot_lsn), f"seed {seed}"


def test_a_target_lies_past_what_earlier_apply_workers_passed_over() -> None:
    """A worker asked, got no target in time, and the apply worker read on and began again: what it
    read before is never sent again, so the table's own worker has to apply it."""
    with world(copied_at=0, batch_rows=1) as made:
        made.wal.commit()
        made.apply_until(lambda: made.progress == made.wal.end)
        # Of a worker that lives; whether it continues doesn't matter here.
        lease = made.store.acquire_lease(f"table:{ORDERS}")
        assert lease is not None
        made.store.update_table_replication_states([(ORDERS, SyncWait(Lsn(_BEGIN)))])
        made.do("break apply")
        made.apply_until(lambda: isinstance(made.state, Catchup))

        assert isinstance(state := made.state, Catchup)
        assert state.target_lsn >= made.wal.end
        lease.release()
