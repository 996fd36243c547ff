"""A pipeline from its start to its end: a scripted source; store and destination in memory.

The threads are real, and each wait for them has a deadline.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    EtlError,
    InvalidState,
    LeaseLost,
    PipelineInUse,
    PublicationMissing,
    SourceError,
    SourceReplaced,
    SourceUnreachable,
    StoreUnreachable,
    Superseded,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableRows
from etl_dagster.model.states import Init, Ready
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.checking.preflight import require_ready
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.streaming.feed import OpenStream
from etl_dagster.runtime.streaming.wire import InProgress
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.source.catalog import (
    PublishedTable,
    emit_marker,
    fetch_insert_lsn,
    fetch_publication,
    fetch_published_tables,
    fetch_relations,
)
from etl_dagster.source.columns import Traces, fetch_traces
from etl_dagster.source.heartbeat import emit_heartbeat
from etl_dagster.source.locks import fetch_exclusive_locks
from etl_dagster.source.membership import Look, Membership, PublicationTrace, Storage, look
from etl_dagster.source.slots import (
    Slot,
    drop_slot,
    fetch_apply_slot,
    fetch_group_slots,
    fetch_slot,
    fetch_table_sync_slots,
)
from etl_dagster.source.trigger import TriggerState, fetch_trigger
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS, schema
from tests.support.scripted import ManualClock, ScriptedSource, config, drain, transaction
from tests.support.waiting import PATIENCE_S, wait_until
from tests.unit.wire import begin, commit, keepalive, xlog_data

_MEMBER = Membership(frozenset({"all 700"}), Storage(1, 90))


class Live:
    """A stream that waits for what the test sends: a frame, or something to do."""

    is_over = False

    def __init__(self, session: ReplicationSession, start_lsn: Lsn, sent: SimpleQueue[Any]) -> None:
        self._session, self.start_lsn, self._sent = session, start_lsn, sent

    def open(self) -> None: ...

    def close(self) -> None: ...

    def confirm(self, lsn: Lsn) -> None: ...

    def request_keepalive(self) -> None: ...

    def interrupt(self) -> None:
        self._sent.put(lambda: None)

    def read(self, timeout_s: float) -> bool:
        try:
            step = self._sent.get(timeout=timeout_s)
        except Empty:
            return False
        if isinstance(step, bytes):
            return drain(self._session, [step])
        step()
        return False


class Destination(MemoryDestination):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def startup(self, store: Any) -> None:
        self.calls.append("startup")
        super().startup(store)

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        super().shutdown()


class Fixture:
    """A pipeline with one table that is copied already, and what is around it."""

    slot_name = "the_slot"
    note = None
    in_progress = InProgress(0, 0)

    def __init__(self) -> None:
        self.store, self.destination, self.clock = MemoryStore(), Destination(), ManualClock()
        self.sent: SimpleQueue[Any] = SimpleQueue()
        self.end = Lsn(1000)
        #: What each try to prepare the stream fails with; None: it doesn't.
        self.refusals: list[EtlError | None] = []
        self.streams = 0
        self.store.store_table_schema(schema(ORDERS))
        self.store.store_destination_table_metadata(
            ORDERS, destination_metadata(schema(ORDERS), "applied")
        )
        MemoryDestination.write_table_rows(self.destination, schema(ORDERS), TableRows("copy"))
        self.store.update_table_replication_states([(ORDERS, Ready(Lsn(1000)))])
        published = [PublishedTable(schema(ORDERS), None, 0)]
        self.answers: dict[Callable[..., Any], Callable[..., Any]] = {
            require_ready: lambda config: published,
            OriginCheck.require: lambda: None,
            fetch_publication: lambda name: None,
            fetch_published_tables: lambda *_, **__: published,
            look: lambda name: Look(
                PublicationTrace(5000, "700", "iudt", False), {ORDERS: _MEMBER}, {}
            ),
            find_unidentified: lambda tables: {},
            fetch_table_sync_slots: lambda pipeline: {},
            fetch_group_slots: lambda pipeline: {},
            fetch_slot: lambda name: None,
            fetch_trigger: lambda: TriggerState(None, False, ""),
            fetch_traces: lambda ids: {ORDERS: Traces("1", "1")},
            fetch_relations: lambda ids: {},
            fetch_exclusive_locks: lambda **_: [],
            fetch_insert_lsn: lambda: self.end,
            emit_marker: lambda: self.end,
            emit_heartbeat: lambda: None,
        }
        self.pipeline = self.make()

    def make(self, **settings: Any) -> Pipeline:
        retry = {"initial_delay_ms": 1000, "max_delay_ms": 1000, "max_attempts": 3}
        return Pipeline(
            config(retry=retry, **settings),
            self.store,
            self.destination,
            copies="elsewhere",
            wire=lambda *_: self,
            make_control=lambda *_, **__: ScriptedSource(self.answers),
            clock=self.clock,
        )

    # -- the wire --------------------------------------------------------------------------------

    def prepare(self) -> Lsn:
        if self.refusals and (refusal := self.refusals.pop(0)) is not None:
            raise refusal
        return self.store.get_replication_progress(ApplyWorker()) or Lsn(1000)

    def open(self, start_lsn: Lsn) -> OpenStream:
        self.streams += 1
        return lambda session: Live(session, start_lsn, self.sent)

    # -- what a test does ------------------------------------------------------------------------

    def start(self) -> None:
        self.pipeline.start()
        wait_until(lambda: self.streams > 0)

    def commits(self, *ids: int) -> None:
        """A transaction with these rows, which is closed and written."""
        for frame in transaction(self.end.offset, *ids):
            self.sent.put(frame)
        self.end = Lsn(self.end.offset + 50)
        self.sent.put(lambda: self.clock.pass_by(2.0))

    def breaks(self, error: BaseException) -> None:
        def fail() -> None:
            raise error

        self.sent.put(fail)

    def ends(self) -> bool:
        return self.pipeline.wait(PATIENCE_S)

    @property
    def ids(self) -> list[int]:
        return [row["id"] for row in self.destination.rows("public.table_1")]


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    made.pipeline.shutdown()


# -- start and end ---------------------------------------------------------------------------------


def test_a_pipeline_streams_until_it_is_told_to_stop(fixture: Fixture) -> None:
    fixture.start()
    fixture.commits(1)
    wait_until(lambda: fixture.pipeline.status().confirmed_lsn == str(fixture.end))
    assert (fixture.ids, fixture.pipeline.status().phase) == ([1], "streaming")

    fixture.pipeline.shutdown()

    assert fixture.ends()
    assert fixture.pipeline.status().phase == "stopped"
    assert fixture.destination.calls == ["startup", "shutdown"]
    assert not fixture.store.is_leased("apply")
    wait_until(lambda: not [t.name for t in threading.enumerate() if "scripted" in t.name])


def test_a_pipeline_can_be_stopped_at_any_time_and_more_than_once(fixture: Fixture) -> None:
    fixture.start()
    for _ in range(2):
        fixture.pipeline.shutdown()
    assert fixture.ends()
    fixture.pipeline.shutdown()


def test_a_pipeline_starts_once(fixture: Fixture) -> None:
    fixture.start()
    with pytest.raises(InvalidState, match="started before"):
        fixture.pipeline.start()


def test_nothing_begins_before_the_source_is_known_to_be_ready(fixture: Fixture) -> None:
    def not_ready(settings: Any) -> None:
        raise SourceError("wal_level is replica")

    fixture.answers[require_ready] = not_ready
    with pytest.raises(SourceError, match="wal_level"):
        fixture.pipeline.start()

    assert fixture.destination.calls == []
    assert fixture.store.current_epoch() == 0
    assert not fixture.store.is_leased("apply")


def test_a_pipeline_that_another_process_runs_is_left_alone(fixture: Fixture) -> None:
    fixture.start()
    with pytest.raises(PipelineInUse, match="another process runs the pipeline 'scripted'"):
        fixture.make().start()

    assert fixture.destination.calls == ["startup"]
    assert fixture.pipeline.status().phase == "streaming"


def test_a_start_that_fails_late_leaves_the_pipeline_to_others(fixture: Fixture) -> None:
    fixture.refusals = [SourceUnreachable("away")]
    with pytest.raises(SourceUnreachable):
        fixture.pipeline.start()

    assert not fixture.store.is_leased("apply")
    # Nothing of it stays open: files, connections, processes.
    assert fixture.destination.calls == ["startup", "shutdown"]


def test_what_was_streamed_from_a_lost_slot_is_no_longer_expected(fixture: Fixture) -> None:
    """Every table is copied again, and the new slot brings nothing of before."""
    fixture.start()
    fixture.commits(1)
    wait_until(lambda: fixture.ids == [1])
    fixture.pipeline.shutdown()
    fixture.ends()

    lost = Slot("s", "pgoutput", "d", False, None, "lost", None, None, 0)
    fixture.answers |= {fetch_apply_slot: lambda config: lost, drop_slot: lambda name: True}
    fixture.pipeline = fixture.make(on_lost_slot="recopy")
    fixture.pipeline.start()
    fixture.sent.put(keepalive(1200))
    fixture.sent.put(lambda: fixture.clock.pass_by(11.0))
    wait_until(lambda: fixture.pipeline.status().confirmed_lsn == str(Lsn(1200)))

    assert fixture.store.get_table_replication_state(ORDERS) == Init()


def test_a_destination_that_fails_to_report_what_it_waits_for_ends_nothing(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[str | None] = []

    class Waiting(Destination):
        def waiting_for(self) -> str | None:
            return answers[0]  # raises while there is none

    fixture.destination = Waiting()
    MemoryDestination.write_table_rows(fixture.destination, schema(ORDERS), TableRows("copy"))
    fixture.pipeline = fixture.make()
    fixture.start()
    for _ in range(2):
        assert fixture.pipeline.status().note is None
    fixture.commits(1)
    wait_until(lambda: fixture.ids == [1])
    # The status is also what the pipeline's own thread writes.
    wait_until(lambda: (fixture.store.get_status("apply") or {}).get("phase") == "streaming")

    answers.append("a lock of session 7")
    assert fixture.pipeline.status().note == "a write waits: a lock of session 7"
    assert caplog.text.count("memory can't tell what it waits for with IndexError") == 1
    assert fixture.pipeline.status().phase == "streaming"


# -- a stream that breaks --------------------------------------------------------------------------


def test_a_stream_that_breaks_is_restarted(fixture: Fixture) -> None:
    fixture.start()
    fixture.breaks(SourceUnreachable("the line is cut"))
    wait_until(lambda: fixture.streams == 2)
    status = fixture.pipeline.status()
    assert status.error == "the line is cut"

    fixture.commits(1)
    wait_until(lambda: fixture.ids == [1] and fixture.pipeline.status().error is None)


def test_a_stream_that_keeps_breaking_ends_the_pipeline(fixture: Fixture) -> None:
    fixture.start()
    for _ in range(4):
        fixture.breaks(SourceUnreachable("the line is cut"))

    with pytest.raises(SourceUnreachable):
        fixture.ends()
    assert fixture.streams == 4
    assert fixture.pipeline.status().phase == "failed"
    assert fixture.destination.calls == ["startup", "shutdown"]


def test_a_transaction_without_rows_that_comes_again_is_recognised(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a heartbeat, which the first stream delivered in one batch with rows.

    The second one brings it after that batch is closed, since the slot was behind: as it is after
    a promotion.
    """
    heartbeat = [xlog_data(begin(1050, xid=7)), xlog_data(commit(1050, 1100))]
    fixture.start()
    for frame in [*transaction(1000, 1), *heartbeat]:
        fixture.sent.put(frame)
    fixture.sent.put(lambda: fixture.clock.pass_by(2.0))
    wait_until(lambda: fixture.pipeline.confirmed == Lsn(1100))
    monkeypatch.setattr(fixture, "prepare", lambda: Lsn(1000))
    fixture.breaks(SourceUnreachable("the server has another primary"))
    wait_until(lambda: fixture.streams == 2)

    for frame in transaction(1000, 1):
        fixture.sent.put(frame)
    fixture.sent.put(lambda: fixture.clock.pass_by(2.0))
    wait_until(lambda: fixture.pipeline.batches == 2)
    for frame in [*heartbeat, keepalive(1200)]:
        fixture.sent.put(frame)
    fixture.sent.put(lambda: fixture.clock.pass_by(20.0))

    wait_until(
        lambda: (
            fixture.pipeline.confirmed == Lsn(1200) or fixture.pipeline.status().phase == "failed"
        )
    )
    assert fixture.pipeline.status().error is None
    assert fixture.ids == [1]


def test_waiting_for_a_pipeline_survives_what_the_pipeline_survives(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source breaks the marker's connection, and the store is away once."""
    fixture.start()
    interruptions: list[EtlError] = [SourceUnreachable("cut"), SourceUnreachable("cut again")]
    away = StoreUnreachable("away")

    def mark() -> Lsn:
        if interruptions:
            raise interruptions.pop()
        return Lsn(1000)

    def get_note(key: str) -> Any:
        monkeypatch.undo()
        fixture.store.update_table_replication_states([(ORDERS, Ready(Lsn(1000)))])
        raise away

    fixture.answers[emit_marker] = mark
    fixture.store.update_table_replication_states([(ORDERS, Init())])
    monkeypatch.setattr(fixture.store, "get_note", get_note)
    fixture.sent.put(keepalive(1000))

    assert fixture.pipeline.wait_until_caught_up(1e9)
    assert interruptions == []
    assert away.__traceback__ is not None


def test_waiting_for_an_unreachable_source_lasts_until_the_deadline(fixture: Fixture) -> None:
    fixture.start()

    def mark() -> Lsn:
        raise SourceUnreachable("the line is cut")

    fixture.answers[emit_marker] = mark
    assert not fixture.pipeline.wait_until_caught_up(60)


def test_waiting_raises_an_error_that_it_cannot_cure(fixture: Fixture) -> None:
    fixture.start()

    def mark() -> Lsn:
        raise SourceReplaced("another cluster")

    fixture.answers[emit_marker] = mark
    with pytest.raises(SourceReplaced):
        fixture.pipeline.wait_until_caught_up(60)


@pytest.mark.parametrize("what", ["commits", "lives"])
def test_a_stream_that_made_progress_gets_all_its_retries_again(
    fixture: Fixture, what: str
) -> None:
    fixture.start()
    for number in range(6):
        streams = fixture.streams
        if what == "commits":
            fixture.commits(number)
            wait_until(lambda: fixture.pipeline.status().confirmed_lsn == str(fixture.end))
        else:
            fixture.sent.put(lambda: fixture.clock.pass_by(61.0))
        fixture.breaks(SourceUnreachable("the line is cut"))
        wait_until(lambda n=streams: fixture.streams > n)  # type: ignore[misc]

    assert fixture.pipeline.status().phase == "streaming"


def test_an_error_that_waiting_cannot_cure_ends_the_pipeline_at_once(fixture: Fixture) -> None:
    fixture.start()
    fixture.breaks(SourceError("the slot is gone"))

    with pytest.raises(SourceError, match="the slot is gone"):
        fixture.ends()
    assert fixture.streams == 1


# -- the lease -------------------------------------------------------------------------------------


def lose_the_lease(fixture: Fixture) -> Any:
    """As if the store had been away for a moment; the holder does not notice by itself."""
    return fixture.store._leases.pop("apply")


def test_a_pipeline_whose_place_another_process_took_ends(fixture: Fixture) -> None:
    fixture.start()
    lose_the_lease(fixture)
    assert fixture.store.acquire_lease("apply") is not None
    fixture.sent.put(lambda: fixture.clock.pass_by(1.0))

    with pytest.raises(LeaseLost, match="another process"):
        fixture.ends()
    # It is the other's: not released with our end.
    assert fixture.store.is_leased("apply")


def test_a_pipeline_that_another_process_ran_meanwhile_ends(fixture: Fixture) -> None:
    fixture.start()
    lose_the_lease(fixture)
    fixture.store.take_epoch()
    fixture.sent.put(lambda: fixture.clock.pass_by(1.0))

    with pytest.raises(Superseded):
        fixture.ends()


def test_a_pipeline_keeps_its_place_where_no_process_took_it(fixture: Fixture) -> None:
    fixture.start()
    lose_the_lease(fixture)
    fixture.sent.put(lambda: fixture.clock.pass_by(1.0))
    wait_until(lambda: fixture.store.is_leased("apply"))
    fixture.commits(1)
    wait_until(lambda: fixture.ids == [1])


def test_a_slot_that_retains_too_much_wal_is_reported_once(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Slot("s", "pgoutput", "d", True, 1, "reserved", Lsn(1), Lsn(1), 2 * 1024**3)
    fixture.answers[fetch_slot] = lambda name: kept
    with caplog.at_level(logging.WARNING):
        fixture.start()
        wait_until(lambda: fixture.pipeline.status().retained_wal_bytes == 2 * 1024**3)
        assert fixture.pipeline.status().wal_warned_above_bytes == 1024**3
        fixture.pipeline.shutdown()
        assert fixture.ends()  # which measures again

    assert caplog.text.count("the source keeps 2.0 GiB of WAL for slot 's'") == 1


# -- the other threads -----------------------------------------------------------------------------


def test_a_publication_that_is_dropped_ends_the_pipeline(fixture: Fixture) -> None:
    """The stream continues without it, with nothing in it."""

    def gone(name: str) -> None:
        raise PublicationMissing(name, [])

    fixture.start()
    fixture.answers[fetch_publication] = gone
    fixture.sent.put(lambda: fixture.clock.pass_by(6.0))

    with pytest.raises(PublicationMissing):
        fixture.ends()


def test_a_refresh_that_fails_is_repeated_and_the_stream_continues(fixture: Fixture) -> None:
    looks: list[int] = []

    def away(name: str) -> None:
        looks.append(1)
        raise SourceUnreachable("away")

    fixture.start()
    fixture.answers[fetch_publication] = away
    fixture.sent.put(lambda: fixture.clock.pass_by(6.0))
    wait_until(lambda: len(looks) >= 2)
    fixture.commits(1)
    wait_until(lambda: fixture.ids == [1])
    assert fixture.pipeline.status().note == "new and stopped tables wait: away"

    fixture.answers[fetch_publication] = lambda name: None
    wait_until(lambda: fixture.pipeline.status().note is None)


def test_a_thread_that_fails_unexpectedly_ends_the_pipeline(fixture: Fixture) -> None:
    def odd(name: str) -> None:
        raise ZeroDivisionError

    fixture.start()
    fixture.answers[fetch_publication] = odd
    fixture.sent.put(lambda: fixture.clock.pass_by(6.0))

    with pytest.raises(ZeroDivisionError):
        fixture.ends()
    assert fixture.destination.calls[-1] == "shutdown"


def test_the_first_failure_is_the_one_raised(fixture: Fixture) -> None:
    def odd(name: str) -> None:
        raise ZeroDivisionError

    def end() -> None:
        wait_until(lambda: fixture.pipeline.status().error is not None)
        raise OverflowError

    fixture.start()
    fixture.answers[fetch_publication] = odd
    fixture.sent.put(lambda: fixture.clock.pass_by(6.0))
    fixture.sent.put(end)

    with pytest.raises(ZeroDivisionError):
        fixture.ends()
