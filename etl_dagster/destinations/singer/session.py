"""One run of the target: what is written into it, and which of that it has written back.

The target reads SCHEMA, RECORD and ACTIVATE_VERSION lines of several writers. After each writer's
last line comes a STATE, whose value has a number for each stream; every record of a stream that is
counted by a number stands before it. What the target writes to its stdout is such a value, once
everything before it is durable: then the writes with that number, or a smaller one, are.

Targets keep states in two ways. Most write back the newest one. Some keep one for each stream and
write their own mixture, so a write counts when its streams' own numbers have come back, and the
first STATE of a run has none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from etl_dagster.destinations.singer.failures import (
    TargetFailed,
    TargetKeptNothing,
    TargetNotAsked,
    TargetStalled,
)
from etl_dagster.destinations.singer.process import TargetProcess, how_it_ended
from etl_dagster.destinations.singer.stderr import Tail
from etl_dagster.destinations.singer.streams import line

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 1 << 16
#: Longer lines on stdout aren't states of ours.
_MOST_STATE_BYTES: Final = 64 * 1024 * 1024
#: So long, a run waits for its first writer.
_UNUSED_S: Final = 5.0
#: After the target's end, for what it has started and what holds its pipes.
_GRACE_S: Final = 1.0
#: After a stop, for what the target still writes.
_STOP_GRACE_S: Final = 10.0


@dataclass(frozen=True, eq=False)
class _Write:
    number: int
    streams: frozenset[str]
    durable: Future[None]


class Session:
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
    ) -> None:
        self.alone = alone
        self._process = process
        self._name = name
        self._tail = tail
        self._flush_after_s = flush_after_s
        self._stalled_after_s = stalled_after_s
        self._on_stderr = on_stderr
        self._run = uuid.uuid4().hex
        #: Taken for the writing of whole lines, and never for anything that waits otherwise.
        self._pipe = threading.Lock()
        self._state = threading.Lock()
        self._headers: dict[str, bytes] = {}
        self._writers = 0
        self._number = 0
        self._bookmarks: dict[str, dict[str, Any]] = {}
        self._pending: list[_Write] = []
        self._failure: TargetFailed | None = None
        self._input_ended = False
        self._is_stopping = False
        self._stop_at: float | None = None
        self._last_write = self._last_sign = time.monotonic()
        #: Whether a writer waits for the target to read.
        self._is_blocked = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._begun = False

    # -- writers ---------------------------------------------------------------------------------

    @property
    def streams(self) -> frozenset[str]:
        """Those that it was told of."""
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
            if not self._begun:
                new = {"": line({"type": "STATE", "value": {"bookmarks": {}}}), **new}
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
            self._process.write(data, self._wait_for_room, self._sign)
        except OSError:
            # Its end, and why, is found by `serve`.
            raise self._wait_for_failure() from None

    def commit(self, bookmarks: Mapping[str, Mapping[str, Any]]) -> Future[None]:
        """End a write whose records have all been sent: by stream, our position in it.

        Returns:
            What completes once the target has written that back.

        Raises:
            TargetFailed: the target has ended, or is to end.
        """
        durable: Future[None] = Future()
        with self._pipe:
            self._require_running()
            with self._state:
                self._number += 1
                for stream, bookmark in bookmarks.items():
                    mine = {"run": self._run, "number": self._number}
                    self._bookmarks[stream] = {**bookmark, **mine}
                value = {"bookmarks": dict(self._bookmarks)}
                self._pending.append(_Write(self._number, frozenset(bookmarks), durable))
            self._send(line({"type": "STATE", "value": value}))
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
            self._stop_at = time.monotonic() + _STOP_GRACE_S
        self._wake()

    def finish(self) -> None:
        """Have the target end as soon as nothing is being written to it.

        One that nothing was written to yet stays, for its writer is about to come.
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
            self._is_blocked, self._last_sign = True, time.monotonic()
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

    def _sign(self) -> None:
        """The target has done something."""
        self._is_blocked, self._last_sign = False, time.monotonic()

    def _wake(self) -> None:
        with self._state:
            if self._wake_w >= 0:
                with contextlib.suppress(BlockingIOError):  # full: it is awake
                    os.write(self._wake_w, b"\0")

    # -- the run ---------------------------------------------------------------------------------

    def serve(self) -> TargetFailed | None:
        """Read what the target writes until it has ended; why what was pending isn't durable."""
        process = self._process
        answers = _Lines()
        with selectors.DefaultSelector() as selector:
            for pipe in (process.stdout, process.stderr, self._wake_r):
                selector.register(pipe, selectors.EVENT_READ)
            ended_at: float | None = None
            while len(selector.get_map()) > 1:
                self._end_input_when_due()
                for key, _ in selector.select(self._wait_s(ended_at)):
                    data = _read(key.fd)
                    if key.fd == self._wake_r or data is None:
                        continue
                    if not data:
                        selector.unregister(key.fd)
                        continue
                    self._sign()
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
        # Pipes may be closed by a target that goes on.
        while process.poll() is None and not self._kill_when_due():
            self._end_input_when_due()
            time.sleep(0.02)
        return self._ended()

    def _wait_s(self, ended_at: float | None) -> float:
        if ended_at is not None:
            return 0.05
        with self._state:
            due = self._last_write + self._flush_after_s - time.monotonic()
            is_waiting = bool(self._pending) and self._writers == 0 and not self._input_ended
        return min(max(due, 0), 0.2) if is_waiting else 0.2

    def _end_input_when_due(self) -> None:
        with self._state:
            if self._input_ended or self._writers:
                return
            quiet_s = time.monotonic() - self._last_write
            if not self._begun:
                is_due = quiet_s > _UNUSED_S
            else:
                # With a pause to wait for, what has answered stays for the next write.
                is_due = quiet_s >= self._flush_after_s
                is_due = is_due and (bool(self._pending) or not self._flush_after_s)
            if not (is_due or self._is_stopping):
                return
            self._input_ended = True
        self._sign()
        self._process.close_input()

    def _kill_when_due(self) -> bool:
        """End the target where it does nothing, or can't be waited for; whether that was so."""
        now = time.monotonic()
        with self._state:
            failure = self._failure
            is_busy = self._is_blocked or self._input_ended
            is_late = self._stop_at is not None and now > self._stop_at
        if failure is None and is_busy and now - self._last_sign > self._stalled_after_s:
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
        """A line of stdout: a state, or something that isn't one and means nothing."""
        try:
            value = json.loads(text)
            bookmarks = value["bookmarks"]
            numbers = {
                stream: bookmark["number"]
                for stream, bookmark in bookmarks.items()
                if bookmark["run"] == self._run and isinstance(bookmark["number"], int)
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return
        with self._state:
            done = [
                write
                for write in self._pending
                if all(
                    write.number <= numbers.get(stream, 0) <= self._number
                    for stream in write.streams
                )
            ]
            self._pending = [write for write in self._pending if write not in done]
        for write in done:
            write.durable.set_result(None)

    def _ended(self) -> TargetFailed | None:
        """Fail what was not written back, and let go of everything."""
        code = self._process.wait()
        with self._state:
            is_early, self._input_ended = not self._input_ended, True
            is_open = bool(self._writers or self._pending)
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
            left, self._pending = self._pending, []
            for pipe in (self._wake_r, self._wake_w):
                os.close(pipe)
            self._wake_w = -1
        with self._pipe:
            self._process.close()
        for write in left:
            assert failure is not None
            write.durable.set_exception(failure)
        if code and failure is not None and not left and not is_open:
            _log.warning("%s; it had written back every STATE before", failure.reason)
        return failure

    def _said(self) -> str:
        text = self._tail.text()
        return f"; the last lines of its stderr:\n{text}" if text else "; it said nothing"


class _Lines:
    """Whole lines of what comes in pieces."""

    def __init__(self) -> None:
        self._open = b""

    def feed(self, data: bytes) -> list[bytes]:
        *whole, self._open = (self._open + data).split(b"\n")
        if len(self._open) > _MOST_STATE_BYTES:
            self._open = b""
        return whole


def _read(pipe: int) -> bytes | None:
    """What is there; nothing at the end; None where nothing is there yet."""
    try:
        return os.read(pipe, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
