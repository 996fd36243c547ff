"""Every table's position as Meltano state, written alongside a running pipeline."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.memory import Entry, MirrorMemory, keep_problem
from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates, PositionWrite
from etl_dagster.integrations.meltano.positions.tables import Positions, request_copy, state_key
from etl_dagster.integrations.meltano.positions.verdicts import (
    Cleared,
    Edited,
    New,
    Refused,
    Renamed,
    StateRow,
    Unchanged,
    Verdict,
    judge,
)
from etl_dagster.integrations.meltano.positions.written import WrittenPositions
from etl_dagster.integrations.meltano.states.errors import StateTablesMissing
from etl_dagster.model.states import Init
from etl_dagster.model.stores import CoordinatingStore, PipelineStore
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.pace import Pace
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

_log = logging.getLogger(__name__)

#: How often the tables are looked at; changes of phase are written then.
_LOOK_EVERY_S = 1.0
#: The pause after a pass is at least this many times the CPU time of finding what to write.
_REST = 4.0
#: How many positions are written in one transaction.
_WRITTEN_AT_ONCE = 100
#: The pause after a failure; doubled after each further one in a row.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
#: How long the start and the end of the mirror may wait for the place of the states.
_FIRST_PASS_S, _LAST_PASS_S = 5.0, 10.0
_SHARED = (
    "another pipeline of the same name writes it, too, and each overwrites the other's positions: "
    "give one of them another `pipeline`, `environment` or `meltano.state_backend`"
)


@contextlib.contextmanager
def mirrored_positions(
    config: PipelineConfig,
    store: PipelineStore,
    status: Callable[[], PipelineStatus | None],
) -> Iterator[PositionMirror | None]:
    """Mirror the positions of a pipeline that this process runs, while the block runs.

    A thread of its own reads what the pipeline knows anyway. If the state backend is away, there is
    a warning, and what is missing is written once it is back. What users requested while no
    pipeline ran is done before the block begins, if the backend answers in time.

    Args:
        store: the pipeline's, open; the mirror remembers there what it has written.
        status: the pipeline's; None while there is nothing to show.
    """
    try:
        states = MirroredStates.of(config)
    except EtlError as error:
        # The pipeline runs already, and positions are only for display.
        _log.error(
            "positions are not mirrored as Meltano state: %s. What to do: %s",
            error.reason,
            error.solution,
        )
        states = None
    if states is None:
        yield None
        return
    mirror = PositionMirror(config, store, status, states)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.stop()


@dataclass(frozen=True)
class _Due:
    """A position that is to be written, and why."""

    write: PositionWrite
    verdict: Verdict
    #: For the log and the notices; empty where there is nothing to report.
    text: str


@dataclass(frozen=True)
class _Found:
    """What one look at the tables and their states found."""

    memory: MirrorMemory
    #: IDs of the states that tables have now.
    present: Collection[str]
    rows: Mapping[str, StateRow]
    due: Sequence[_Due]


class PositionMirror:
    """The thread, and what it knows.

    Args:
        now_s: a clock that only goes forward, in seconds.
        cpu_s: the CPU time of the calling thread so far, in seconds.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: PipelineStore,
        status: Callable[[], PipelineStatus | None],
        states: MirroredStates,
        *,
        now_s: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._now_s, self._cpu_s = now_s, cpu_s
        self._config = config
        self._store = store
        #: Without it, memory lasts as long as this object.
        self._coordination = store if isinstance(store, CoordinatingStore) else None
        self._status = status
        self._states = states
        self._interval_s = config.meltano.interval_s
        self._look = Pace(min(_LOOK_EVERY_S, self._interval_s), cpu_s=cpu_s)
        self._read = Pace(self._interval_s, cpu_s=cpu_s)
        self._read_due_s = 0.0
        self._memory: MirrorMemory | None = None
        self._kept: str | None = None
        self._positions = Positions(config, store)
        self._written = WrittenPositions(self._interval_s, now_s)
        self._has_namesake = False
        #: The tables as they were last looked at, if no phase of theirs was to be written.
        self._looked_at: Mapping[str, TableStatus] | None = None
        self._stop = threading.Event()
        self._first_pass = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meltano mirror", daemon=True)

    def start(self) -> None:
        """Start the thread, and wait a moment for its first look at what users requested."""
        self._thread.start()
        self._first_pass.wait(_FIRST_PASS_S)

    def stop(self) -> None:
        """Write the last positions, and end; not much later than `_LAST_PASS_S`."""
        self._stop.set()
        self._thread.join(_LAST_PASS_S)
        if self._thread.is_alive():
            _log.warning("the last positions could not be mirrored as Meltano state in time")
        self._states.close()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        pauses = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            is_last = self._stop.is_set()
            try:
                pause_s = self._turn(is_last=is_last)
                pauses.reset()
            except EtlError as error:
                if isinstance(error, StateTablesMissing):
                    self._memory = None  # they were dropped; the next pass creates them again
                pause_s = pauses.next_delay_s()
                self._say_problem(error, is_first=pauses.attempt == 1)
            except Exception as error:
                # Positions are only for display: whatever is wrong here, the pipeline continues.
                pause_s = pauses.next_delay_s()
                log_failure(_log, "mirroring positions failed", error)
            self._first_pass.set()
            if is_last:
                return
            self._stop.wait(pause_s)

    def _say_problem(self, error: EtlError, *, is_first: bool) -> None:
        if is_first:
            _log.warning(
                "positions can't be mirrored as Meltano state now: %s. What to do: %s "
                "The pipeline continues, and what is missing is written later.",
                error.reason.rstrip("."),
                error.solution,
            )
        if self._coordination is None:
            return
        with contextlib.suppress(EtlError):
            if self._memory is None:
                keep_problem(self._coordination, error.reason)
            elif self._memory.problem != error.reason:
                self._memory.problem = error.reason
                self._keep(self._memory)

    # -- one pass --------------------------------------------------------------------------------

    def _turn(self, *, is_last: bool) -> float:
        """Do one pass; the pause after it, in seconds."""
        now_s, began_s = self._now_s(), self._cpu_s()
        self._look.begin()
        self._read.begin()
        found = self._find(must_read=is_last or now_s >= self._read_due_s, is_last=is_last)
        if found is None:
            return self._look.end()
        # Each phase is written once. Only the search for phases is repeated, while those of
        # thousands of tables change all the time.
        look_s, read_s = self._look.end(), self._read.end()
        rest_s = _REST * (self._cpu_s() - began_s)
        self._write(found, is_last=is_last)
        self._read_due_s = now_s + read_s
        return min(max(look_s, rest_s), self._interval_s)

    def _find(self, *, must_read: bool, is_last: bool = False) -> _Found | None:
        """Look at the tables and, where due, at the states; None where these were not read."""
        status = self._status()
        if status is None:
            return None
        if not must_read and status.tables is self._looked_at:
            return None
        positions = self._positions.of(status)
        has_new_phase = any(self._written.is_new_phase(position) for position in positions)
        self._looked_at = None if has_new_phase else status.tables
        if not (must_read or has_new_phase):
            return None
        if self._is_superseded(status):
            return None
        memory = self._open_memory()
        rows = self._states.read([*memory.entries, *(p.state_id for p in positions)])
        if memory.entries.keys() - rows.keys() and self._states.place() != memory.place:
            # All states are gone, not only these: the table was replaced by another one.
            self._memory = None
            memory = self._open_memory()
        self._look_for_a_namesake(memory, status, rows)
        settled = (
            self._settle(memory, p, rows.get(p.state_id), is_last=is_last) for p in positions
        )
        due = [step for step in settled if step is not None]
        return _Found(memory, {position.state_id for position in positions}, rows, due)

    def _write(self, found: _Found, *, is_last: bool = False) -> None:
        """Write what is due; what a stop interrupts is left to the last pass."""
        memory = found.memory
        # If time runs out at the end, positions that only moved matter least.
        due = sorted(found.due, key=lambda step: not step.write.is_step)
        for first in range(0, len(due), _WRITTEN_AT_ONCE):
            if self._stop.is_set() and not is_last:
                return
            some = due[first : first + _WRITTEN_AT_ONCE]
            written = self._states.write_each([step.write for step in some])
            for step in some:
                if step.write.position.state_id in written:
                    self._wrote(memory, step, written[step.write.position.state_id])
            for step in some:
                # While another process is writing, it is not known whether there will be a newer
                # version. Wait for it; if there is one, the next pass reads it.
                if step.write.position.state_id not in written and self._states.write(step.write):
                    self._wrote(memory, step, None)
        if found.present:
            self._forget(memory, found.present, found.rows)
        memory.problem = None
        self._keep(memory)

    def _is_superseded(self, status: PipelineStatus) -> bool:
        """Whether another process has taken the pipeline over, and mirrors it."""
        return self._coordination is not None and self._coordination.current_epoch() != status.epoch

    def _look_for_a_namesake(
        self, memory: MirrorMemory, status: PipelineStatus, rows: Mapping[str, StateRow]
    ) -> None:
        """Report, once, a pipeline of the same name with another store."""
        position = None if self._has_namesake else self._written.followed(rows)
        if position is not None and not self._is_superseded(status):
            self._has_namesake = True
            self._say(memory, position, "shared", _SHARED)

    def _open_memory(self) -> MirrorMemory:
        if self._memory is None:
            self._states.migrate()
            place = self._states.place()
            if self._coordination is None:
                self._memory = MirrorMemory(place)
            else:
                self._memory = MirrorMemory.load(self._coordination, place)
        return self._memory

    def _keep(self, memory: MirrorMemory) -> None:
        content = repr(memory)
        if content != self._kept and self._coordination is not None:
            memory.keep(self._coordination)
        self._kept = content

    def _settle(
        self, memory: MirrorMemory, position: TablePosition, row: StateRow | None, *, is_last: bool
    ) -> _Due | None:
        """Answer what a user did to one state; returns what to write, None if nothing is due."""
        state_id = position.state_id
        if row is not None and row.is_ours:
            position = self._positions.with_commit_of(position, row.state)
        entry = memory.entries.get(state_id)
        verdict = self._judge(position, row, entry)
        note = entry.note if entry is not None else None
        text = ""
        match verdict:
            case Unchanged():
                if not self._written.is_due(position, is_last=is_last):
                    return None
            case Cleared(how):
                note = self._copy_again(memory, position, entry, how)
                position = self._positions.again(position)
            case Renamed(to):
                text = f"it was moved to {to}, which is a copy now; the table keeps this ID"
                note = _dated(text)
            case Refused(reason):
                text = f"an edit was refused: {reason}. To copy the table again, clear its state"
                note = _dated(text)
            case Edited() | New():
                note = None
        is_step = not isinstance(verdict, Unchanged) or self._written.is_new_phase(position)
        return _Due(PositionWrite(position, note, row, is_step), verdict, text)

    def _wrote(self, memory: MirrorMemory, due: _Due, version: int | None) -> None:
        """Remember what was written.

        Only now that the state is there: a state that could not be written was not cleared.
        """
        position, text = due.write.position, due.text
        state_id = position.state_id
        self._written.add(position, version)
        memory.entries[state_id] = Entry(position.table_id, position.table, None, due.write.note)
        match due.verdict:
            case Renamed():
                self._say(memory, position, "moved", text)
            case Refused():
                self._say(memory, position, "refused", text)
            case Edited():
                self._say(memory, position, "edited", "only what is displayed was changed")
            case New() if due.write.over is not None:
                _log.info("%s is mirrored from now on; its old content was replaced", state_id)

    def _judge(self, position: TablePosition, row: StateRow | None, entry: Entry | None) -> Verdict:
        if entry is not None and entry.requested_at is not None:
            # The request was seen before, and is not completed yet.
            return Cleared(entry.note or "its state was cleared")
        return judge(
            position,
            row,
            was_mirrored=entry is not None,
            known_lsns=self._written.lsns(position.state_id),
            has_history=lambda: self._states.has_history(position),
            find_move=lambda: self._states.find_move(position),
        )

    # -- requests --------------------------------------------------------------------------------

    def _copy_again(
        self, memory: MirrorMemory, position: TablePosition, entry: Entry | None, how: str
    ) -> str:
        """Ask for a new copy, once for each request; returns the note for the state.

        The request is remembered with the table's state at that moment, and forgotten when the
        mirrored state is written again. Between the two this may be called any number of times,
        also by another process after a crash: for a table in another state, it has asked before.
        """
        table_id = position.table_id
        state = self._store.get_table_replication_state(table_id)
        key = None if state is None else state_key(self._coordination, table_id, state)
        if entry is None or entry.requested_at is None:
            text = f"{how}, so the table is copied again from the beginning"
            entry = Entry(table_id, position.table, key or "unknown", _dated(text))
            memory.entries[position.state_id] = entry
            self._say(memory, position, "copy", text)
            self._keep(memory)
        if key == entry.requested_at and not isinstance(state, Init):
            request_copy(self._store, table_id)
        return entry.note or _dated(how)

    def _say(self, memory: MirrorMemory, position: TablePosition, kind: str, text: str) -> None:
        log = _log.info if kind == "edited" else _log.warning
        log("Meltano state %s: %s", position.state_id, text)
        memory.notify(position.state_id, position.table, kind, text)

    # -- states whose table is gone ----------------------------------------------------------------

    def _forget(
        self, memory: MirrorMemory, present: Collection[str], rows: Mapping[str, StateRow]
    ) -> None:
        """Delete what the mirror wrote for tables that left the pipeline, or under earlier IDs.

        A state that another program has written since stays.
        """
        for state_id in memory.entries.keys() - set(present):
            row = rows.get(state_id)
            if row is not None and row.is_ours and not self._states.delete(state_id, row):
                continue
            del memory.entries[state_id]
            self._written.forget(state_id)
            _log.info("%s does not belong to the pipeline any more, and is not mirrored", state_id)


def _dated(text: str) -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {text}"
