"""The shared slot: read by one connection, confirmed up to what every destination has."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationLeftBehind, EtlError, SlotMissing, SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.runtime.fan_out.tee import Branch, Tee
from etl_dagster.runtime.memory import PAUSE_S, MemoryBudget
from etl_dagster.runtime.slot import fetch_idle_slot
from etl_dagster.runtime.streaming.wire import spools_of
from etl_dagster.source.connection import connect
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import (
    apply_slot_name,
    copy_slot,
    drop_slot,
    fetch_slot,
    make_failover_slot,
    require_usable,
)
from etl_dagster.source.stream import ReplicationStream
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

_TURN_S = 0.25
#: How finely it is measured who is waited for.
_ROOM_S = 0.1
#: A connection that lived so long begins its retries again when it breaks.
_STABLE_S = 60.0


class SharedSlot:
    """Reads the permanent slot of a pipeline with several destinations, on a thread of its own.

    Each destination that reads it is pinned: the slot is confirmed up to the least of what the
    pinned ones have made durable. A pin is taken before anything is read, and given up only when
    a slot of the destination's own keeps all that it still needs.

    Args:
        config: of the pipeline as a whole.
        control: for questions about the slot; not used by anyone who waits for a branch.
    """

    def __init__(
        self,
        config: PipelineConfig,
        control: SourceControl,
        pace: FanOutPace,
        memory: MemoryBudget,
    ) -> None:
        self._config = config
        self._memory = memory
        self._pace = pace
        self._control = control
        self.name = apply_slot_name(config.pipeline)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._pins: dict[str, Lsn] = {}
        #: Destinations that the next connection waits for.
        self._expected: set[str] = set()
        self._branches: dict[str, Branch] = {}
        self._deciding: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._tee: Tee | None = None
        #: What waiting doesn't help against: nothing is read any more.
        self.failure: EtlError | None = None
        self._is_started = False
        self._stream: ReplicationStream | None = None
        #: Before the branches: each gets whole transactions, in the order of commits.
        self.spools = spools_of(config)
        self._thread = Background(self._run, name=f"shared stream {config.pipeline}")

    def start(self, pins: Mapping[str, Lsn], expected: set[str]) -> None:
        """Begin to read as soon as the expected destinations have come.

        Args:
            pins: what the destinations have made durable that have no slot of their own.
        """
        self._pins, self._expected = dict(pins), set(expected)
        self._thread.start()

    def stop(self) -> None:
        """End the connection; safe in a signal handler. `join` waits for it."""
        self._stop.set()
        if (stream := self._stream) is not None:
            stream.interrupt()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    # -- the reading thread ----------------------------------------------------------------------

    def _run(self) -> None:
        pauses = Backoff(0.5, 30.0)
        while not self._stop.is_set():
            began = time.monotonic()
            failure: EtlError | None = None
            try:
                self._read()
            except Stopped:
                pass
            except EtlError as error:
                failure = error
                if not self._stop.is_set():
                    _log.warning("the shared stream ended: %s", error.reason)
                    if not error.retryable:
                        self.failure = error
            except BaseException as error:
                log_failure(_log, "the shared stream failed", error)
                failure = SourceUnreachable(
                    f"{type(error).__name__} in the thread that reads the shared slot",
                    solution="The log has the details; the pipeline reconnects by itself.",
                )
            finally:
                with self._changed:
                    tee, self._tee, self._is_started = self._tee, None, False
                    self._branches.clear()
                if tee is not None:
                    tee.end(failure)
            if self.failure is not None:
                return
            if time.monotonic() - began > _STABLE_S:
                pauses.reset()
            self._stop.wait(pauses.next_delay_s())

    def _read(self) -> None:
        start_lsn = self._confirmed()
        tee = Tee(
            start_lsn,
            buffer_bytes=self._config.fan_out.buffer,
            request_keepalive=self.request_keepalive,
            changed=self._changed,
        )
        stream = ReplicationStream(
            self._config.source,
            self.name,
            tee,
            start_lsn,
            application_name=f"etl_dagster apply {self._config.pipeline}",
            spools=self.spools,
        )
        with self._changed:
            self._tee, self._stream = tee, stream
            self._changed.notify_all()
        if not self._gather():
            return
        stream.open()
        # The branches' readers tell what isn't written yet.
        reader = self._memory.reader(lambda: False)
        try:
            while not self._stop.is_set():
                if not reader.may_read(alone=not tee.is_waiting):
                    self._stop.wait(PAUSE_S)
                elif tee.wait_for_room(_ROOM_S):
                    stream.read(_TURN_S)
                self._confirm(stream, tee)
        finally:
            reader.close()
            self._confirm(stream, tee)
            stream.close()

    def _confirmed(self) -> Lsn:
        slot = fetch_idle_slot(self._control, self.name, self._stop)
        if slot is None or slot.confirmed_flush_lsn is None:
            raise SlotMissing(f"slot {self.name!r} is gone from the source")
        require_usable(slot)
        return slot.confirmed_flush_lsn

    def _gather(self) -> bool:
        """Wait for the destinations that read from the start on; False when told to stop."""
        deadline: float | None = None
        with self._changed:
            while not self._stop.is_set():
                if self._branches and deadline is None:
                    deadline = time.monotonic() + self._pace.gather_s
                are_there = self._branches.keys() >= self._expected
                is_late = deadline is not None and time.monotonic() > deadline
                if self._branches and (are_there or is_late):
                    self._is_started = True
                    return True
                if not self._expected and not self._branches:
                    # Every destination is set aside; the slot still has to move on.
                    self._is_started = True
                    return True
                self._changed.wait(_TURN_S)
        return False

    def _confirm(self, stream: ReplicationStream, tee: Tee) -> None:
        """Confirm what all have; never past what was read, where the next place may be given."""
        with self._changed:
            least = min([*self._pins.values(), tee.reached])
        stream.confirm(least)

    def request_keepalive(self) -> None:
        if (stream := self._stream) is not None:
            stream.request_keepalive()

    @property
    def is_open(self) -> bool:
        """Whether the slot is read now."""
        return self._is_started

    # -- destinations, from any thread -----------------------------------------------------------

    @property
    def server_end(self) -> Lsn | None:
        """The end of the server's WAL, as last said; None without a connection."""
        tee = self._tee
        return None if tee is None else tee.last_wal_end

    def pinned(self) -> dict[str, Lsn]:
        """By name, what each destination that reads the slot has made durable."""
        with self._changed:
            return dict(self._pins)

    def deciding(self, name: str) -> threading.Lock:
        """Held while it is decided which slot a destination reads."""
        return self._deciding[name]

    def branch_of(self, name: str) -> Branch | None:
        return self._branches.get(name)

    def branch(self, name: str, durable: Lsn | None, *, stop: threading.Event) -> Branch | None:
        """A branch for a destination that has everything before `durable`, None for a new one.

        Returns None where the stream is past that already. Waits for a place in the stream.

        Raises:
            Stopped: told to stop.
            SourceUnreachable: there is no connection now, or no place in time.
        """
        branch = self._add(name, is_ahead=False, wait_s=self._pace.gather_s, stop=stop)
        deadline = time.monotonic() + self._pace.place_s
        try:
            while not branch.wait_placed(_TURN_S):
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise SourceUnreachable(
                        "the shared stream did not reach the end of a transaction within "
                        f"{self._pace.place_s} s",
                        solution="No action needed: it is tried again.",
                    )
            if durable is not None and durable < branch.start_lsn:
                branch.close()
                return None
        except BaseException:
            branch.close()
            raise
        return branch

    def join_ahead(self, name: str) -> Branch:
        """A branch whose reader comes later; it counts for the slot as soon as it has its place.

        Raises:
            SourceUnreachable: there is no connection now.
        """
        return self._add(name, is_ahead=True, wait_s=0.0, stop=self._stop)

    def _add(self, name: str, *, is_ahead: bool, wait_s: float, stop: threading.Event) -> Branch:
        deadline = time.monotonic() + wait_s
        with self._changed:
            while self._tee is None:
                if stop.is_set() or self._stop.is_set():
                    raise Stopped
                if time.monotonic() >= deadline:
                    raise SourceUnreachable("the shared slot is not being read now")
                self._changed.wait(_TURN_S)
            branch = self._tee.branch(
                is_started=self._is_started,
                is_ahead=is_ahead,
                # In one step with getting its place: nothing after that may be confirmed.
                on_placed=lambda start_lsn: self.pin(name, self._pins.get(name, start_lsn)),
                on_confirm=lambda lsn: self.pin(name, lsn),
            )
            self._branches[name] = branch
            if not is_ahead:
                self._expected.add(name)
            self._changed.notify_all()
        return branch

    def pin(self, name: str, lsn: Lsn) -> None:
        """The destination has everything before; a smaller LSN changes nothing."""
        with self._changed:
            self._pins[name] = max(self._pins.get(name, lsn), lsn)

    def expects(self, name: str) -> None:
        """Wait for the destination when the next connection begins."""
        with self._changed:
            self._expected.add(name)

    def expects_no_more(self, name: str) -> None:
        """Don't wait for the destination when the next connection begins."""
        with self._changed:
            self._expected.discard(name)
            self._changed.notify_all()

    def unpin(self, name: str) -> None:
        """The slot keeps nothing for the destination any longer."""
        with self._changed:
            self._pins.pop(name, None)
            self._expected.discard(name)
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """The destination reads its own slot, and nothing else."""
        with self._changed:
            # Perhaps one that an earlier pipeline of the destination asked for, for its return.
            branch = self._branches.pop(name, None)
            if branch is not None:
                branch.close()
            self.unpin(name)

    def set_aside(self, name: str, own: str, durable: Lsn | None) -> None:
        """Give a destination a slot of its own, which keeps all that it does not have yet.

        To be called with `deciding`.

        Args:
            own: the name of that slot.
            durable: what the destination has; None of one that needs nothing yet.

        Raises:
            DestinationLeftBehind: the shared slot is past that.
            EtlError: the slot can't be made; the destination stays pinned.
        """
        if self._control.ask("looking at the slot", fetch_slot, own) is None:
            begins = self._control.ask("copying the shared slot", copy_slot, self.name, own)
            if durable is not None and durable < begins:
                self._control.ask("dropping a slot", drop_slot, own)
                raise DestinationLeftBehind(
                    f"slot {self.name!r} was confirmed up to {begins}, but {name} has only what "
                    f"is before {durable}"
                )
        self.keep_for_standbys(own)
        # Only now: until then the shared slot keeps what the destination needs.
        self.leave(name)

    def keep_for_standbys(self, own: str) -> None:
        """Have standbys keep a destination's own slot, where they are to keep the shared one.

        A copy of a slot doesn't say so by itself. To be called with `deciding`, before the slot is
        read: the process may have ended between the copy and this.

        Raises:
            EtlError: the source can't be reached or refuses.
        """
        shared = self._control.ask("looking at the shared slot", fetch_slot, self.name)
        slot = self._control.ask("looking at the slot", fetch_slot, own)
        if shared is None or slot is None or slot.is_failover or not shared.is_failover:
            return
        if slot.active or slot.is_lost:
            return
        with connect(
            self._config.source, application_name="etl_dagster slot", replication=True
        ) as connection:
            make_failover_slot(connection, own)
