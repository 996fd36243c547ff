"""One run of the target: what is written into it, and which of that it has written back.

The target reads SCHEMA, RECORD and ACTIVATE_VERSION lines of several writers, and STATE lines
(`states`). A target whose input is ended after each load is given one STATE, the last line of all;
one that is kept running is given a STATE after each write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from etl_dagster.destinations.singer.failures import (
    TargetFailed,
    TargetKeptNothing,
    TargetNotAsked,
    TargetStalled,
)
from etl_dagster.destinations.singer.process import Lines, TargetProcess, how_it_ended, read_pipe
from etl_dagster.destinations.singer.states import States
from etl_dagster.destinations.singer.stderr import Tail

_log = logging.getLogger(__name__)

#: How long a run waits for its first writer.
_UNUSED_S: Final = 5.0
#: How long to wait, after the target's end, for its own processes that hold its pipes.
_GRACE_S: Final = 1.0
#: How long the target may still write after a stop.
STOP_GRACE_S: Final = 10.0


class TargetSession:
    """A run of the target, from its start to its end.

    `serve` is the run, called by the thread that made the process; the other methods are for
    writers on any thread.

    Args:
        name: of the target, for people.
        on_stderr: gets what the target writes there, as it is.
    """

    def __init__(
        self,
        process: TargetProcess,
        name: str,
        tail: Tail,
        *,
        flush_after_s: float,
        stalled_after_s: float,
        on_stderr: Callable[[bytes], object] | None = None,
        alone: bool = False,
        stop_grace_s: float = STOP_GRACE_S,
    ) -> None:
        self.alone = alone
        self._stop_grace_s = stop_grace_s
        self._process = process
        self._name = name
        self._tail = tail
        self._flush_after_s = flush_after_s
        self._stalled_after_s = stalled_after_s
        self._on_stderr = on_stderr
        self._states = States()
        #: Held while whole lines are written, and never while waiting for anything else.
        self._pipe = threading.Lock()
        self._state = threading.Lock()
        self._headers: dict[str, bytes] = {}
        self._writers = 0
        self._failure: TargetFailed | None = None
        self._input_ended = False
        self._is_stopping = False
        self._stop_at: float | None = None
        self._last_write = self._last_activity = time.monotonic()
        #: Whether a writer waits for the target to read.
        self._is_blocked = False
        #: The part of the last STATE that is still to be written before the input ends.
        self._last_line: memoryview | None = None
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._begun = False

    # -- writers ---------------------------------------------------------------------------------

    @property
    def streams(self) -> frozenset[str]:
        """The streams that were written in this run."""
        with self._state:
            return frozenset(self._headers)

    def join(self, headers: Mapping[str, bytes]) -> bool:
        """Begin to write records of these streams; False where this run takes no more.

        A stream has one schema in a run: some targets would write what came under the first one
        after what came under the second.
        """
        with self._state:
            if self._input_ended or self._failure is not None or self._is_stopping:
                return False
            if self.alone and self._headers:
                return False
            known = self._headers
            if any(known.get(stream, header) != header for stream, header in headers.items()):
                return False
            new = {s: header for s, header in headers.items() if s not in known}
            known.update(new)
            self._writers += 1
            if not self._begun and self._flush_after_s:
                new = {"": self._states.line(), **new}
            self._begun = True
        try:
            self.send(b"".join(new.values()))
        except BaseException:
            self.leave()
            raise
        return True

    def send(self, data: bytes | memoryview) -> None:
        """Write whole lines.

        Raises:
            TargetFailed: the target has ended, or is to end.
        """
        with self._pipe:
            self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        self._require_running()
        try:
            self._process.write(data, self._wait_for_room, self._note_activity)
        except TargetFailed:
            raise
        except OSError:
            # `serve` finds out why it has ended.
            raise self._wait_for_failure() from None
        except BaseException:
            # Half a line may be in the pipe, and nothing may follow it.
            self._fail(TargetFailed(f"{self._name} is ended, since a write to it was interrupted"))
            raise

    def commit(self, bookmarks: Mapping[str, Mapping[str, Any]]) -> Future[None]:
        """End a write whose records have all been sent: by stream, our position in it.

        Returns:
            What completes once the target has written that back.

        Raises:
            TargetFailed: the target has ended, or is to end.
        """
        with self._pipe:
            self._require_running()
            with self._state:
                durable = self._states.add(bookmarks)
                is_last, state = not self._flush_after_s, self._states.line()
            if not is_last:
                self._send(state)
        return durable

    def leave(self) -> None:
        """This writer writes no more."""
        with self._state:
            self._writers -= 1
            self._last_write = time.monotonic()
        self._wake()

    def stop(self) -> None:
        """Take no more; writers that wait for the target end, and so does the target, soon."""
        with self._state:
            self._is_stopping = True
            self._stop_at = time.monotonic() + self._stop_grace_s
        self._wake()

    def finish(self) -> None:
        """Have the target end as soon as nothing is being written to it.

        If nothing has been written yet, it stays: its first writer is about to come.
        """
        with self._state:
            if self._begun:
                self._flush_after_s = 0
        self._wake()

    def _require_running(self) -> None:
        with self._state:
            if self._failure is not None:
                raise self._failure
            if self._is_stopping:
                # A line may be cut, so nothing more may be written after it.
                self._failure = TargetNotAsked(
                    f"{self._name} is ended before it took everything: the pipeline stops"
                )
                raise self._failure

    def _wait_for_room(self) -> None:
        """The pipe is full: the target is expected to read."""
        if not self._is_blocked:
            self._is_blocked, self._last_activity = True, time.monotonic()
        self._require_running()

    def _wait_for_failure(self) -> TargetFailed:
        """Why the target has ended, which `serve` finds."""
        deadline = time.monotonic() + 2 * _GRACE_S + 1
        while time.monotonic() < deadline:
            with self._state:
                if self._failure is not None:
                    return self._failure
            self._wake()
            time.sleep(0.01)
        return self._fail(TargetFailed(f"{self._name} closed its input"))

    def _fail(self, failure: TargetFailed) -> TargetFailed:
        with self._state:
            if self._failure is None:
                self._failure = failure
            found = self._failure
        self._wake()
        return found

    def _note_activity(self) -> None:
        """The target has done something."""
        self._is_blocked, self._last_activity = False, time.monotonic()

    def _wake(self) -> None:
        with self._state:
            if self._wake_w >= 0:
                with contextlib.suppress(BlockingIOError):  # full: it is awake
                    os.write(self._wake_w, b"\0")

    # -- the run ---------------------------------------------------------------------------------

    def serve(self) -> TargetFailed | None:
        """Read what the target writes until it has ended; returns why, if it failed."""
        try:
            self._listen()
        except Exception as error:
            _log.debug("reading the output of %s failed", self._name, exc_info=True)
            self._fail(TargetFailed(f"{self._name}'s output can't be read: {type(error).__name__}"))
            self._process.kill()
        return self._ended()

    def _listen(self) -> None:
        process = self._process
        answers = Lines()
        with selectors.DefaultSelector() as selector:
            for pipe in (process.stdout, process.stderr, self._wake_r):
                selector.register(pipe, selectors.EVENT_READ)
            ended_at: float | None = None
            while len(selector.get_map()) > 1:
                self._end_input_when_due()
                is_waiting = self._write_last_line()
                for key, _ in selector.select(0.01 if is_waiting else self._wait_s(ended_at)):
                    data = read_pipe(key.fd)
                    if key.fd == self._wake_r or data is None:
                        continue
                    if not data:
                        selector.unregister(key.fd)
                        continue
                    self._note_activity()
                    if key.fd == process.stdout:
                        for text in answers.feed(data):
                            self._answered(text)
                    else:
                        self._tail.feed(data)
                        if self._on_stderr is not None:
                            self._on_stderr(data)
                if process.poll() is None:
                    self._kill_when_due()
                elif ended_at is None:
                    ended_at = time.monotonic()
                elif time.monotonic() - ended_at > _GRACE_S:
                    break  # something that it started holds its pipes
        # Pipes may be closed by a target that continues.
        while process.poll() is None and not self._kill_when_due():
            self._end_input_when_due()
            self._write_last_line()
            time.sleep(0.02)

    def _wait_s(self, ended_at: float | None) -> float:
        if ended_at is not None:
            return 0.05
        with self._state:
            due = self._last_write + self._flush_after_s - time.monotonic()
            is_waiting = self._states.are_pending and self._writers == 0 and not self._input_ended
        return min(max(due, 0), 0.2) if is_waiting else 0.2

    def _end_input_when_due(self) -> None:
        with self._state:
            if self._input_ended or self._writers:
                return
            quiet_s = time.monotonic() - self._last_write
            if not self._begun:
                is_due = quiet_s > _UNUSED_S
            else:
                # One that is kept running and has confirmed everything waits for the next write.
                is_due = quiet_s >= self._flush_after_s
                is_due = is_due and (self._states.are_pending or not self._flush_after_s)
            if not (is_due or self._is_stopping):
                return
            self._input_ended = True
            self._last_line = memoryview(self._states.line() if self._states.are_pending else b"")
        self._note_activity()
        self._write_last_line()

    def _write_last_line(self) -> bool:
        """Write the last STATE as far as the target reads; returns whether some is left."""
        if self._last_line is None:
            return False
        try:
            while self._last_line:
                self._last_line = self._last_line[os.write(self._process.stdin, self._last_line) :]
                self._note_activity()
        except BlockingIOError:
            return True
        except OSError:
            pass  # it has ended, which is found
        self._last_line = None
        self._process.close_input()
        return False

    def _kill_when_due(self) -> bool:
        """Kill the target if it has failed, does nothing or is too late; returns whether it was."""
        now = time.monotonic()
        with self._state:
            failure = self._failure
            is_busy = self._is_blocked or self._input_ended
            is_late = self._stop_at is not None and now > self._stop_at
        if failure is None and is_busy and now - self._last_activity > self._stalled_after_s:
            said = self._said()
            failure = self._fail(
                TargetStalled(
                    f"{self._name} has read, written and logged nothing for "
                    f"{self._stalled_after_s:g} s, and was ended{said}"
                )
            )
        if failure is None and is_late:
            failure = self._fail(
                TargetNotAsked(f"{self._name} did not end in time when the pipeline stopped")
            )
        if failure is None:
            return False
        self._process.kill()
        return True

    def _answered(self, text: bytes) -> None:
        with self._state:
            done = self._states.written_back(text)
        for durable in done:
            durable.set_result(None)

    def _ended(self) -> TargetFailed | None:
        """Fail the writes that were not confirmed, and close everything."""
        code = self._process.wait()
        with self._state:
            is_early, self._input_ended = not self._input_ended, True
            is_open = bool(self._writers or self._states.are_pending)
            failure = self._failure
        if failure is None and (code or is_open or is_early):
            how = (
                how_it_ended(code)
                if code
                else "ended while it was still being written to"
                if is_early
                else "ended without writing back the last STATE"
            )
            kind = TargetFailed if code or is_early else TargetKeptNothing
            failure = self._fail(kind(f"{self._name} {how}{self._said()}"))
        with self._state:
            left = self._states.take_pending()
            for pipe in (self._wake_r, self._wake_w):
                os.close(pipe)
            self._wake_w = -1
        with self._pipe:
            self._process.close()
        for durable in left:
            assert failure is not None
            durable.set_exception(failure)
        if code and failure is not None and not left and not is_open:
            _log.warning("%s; it had written back every STATE before", failure.reason)
        return failure

    def _said(self) -> str:
        text = self._tail.text()
        return f"; the last lines of its stderr:\n{text}" if text else "; it printed nothing"
