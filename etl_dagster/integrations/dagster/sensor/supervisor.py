"""Keeps one replicator process alive for each pipeline, for as long as it is asked for.

Everything here belongs to the code server's process: children are spawned when a sensor ticks,
never when code is imported, and end with the process, by its exit hook or by their closed stdin.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.sensor.supervision import Supervision
from etl_dagster.integrations.dagster.worst_lag import WorstLag
from etl_dagster.runtime.showing.status import PipelineStatus

#: After a failure, the next try comes after this long; doubled for each failure in a row.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
#: A child that lived this long was healthy: failures before it are forgotten, and another one is
#: started at once.
_STABLE_S = 60.0
#: A tick waits this long for a new child's first words, so that a mistake shows at once.
_FIRST_WORDS_S = 2.0
#: A child reports its status every 5 s; one that reports nothing for this long hangs.
_SILENCE_S = 120.0
#: How long a child may take to end when this process ends.
_GOODBYE_S = 5.0
_LOG_TAIL_LINES = 20
#: A daemon with many sensors, or a busy machine, comes late. A lease lasts for so many of the
#: longest pause between the last few ticks; a longer pause than this is a sensor that was off.
_PAUSES_PER_LEASE, _LONGEST_PAUSE_OF_TICKS_S = 3, 100.0
_PAUSES_REMEMBERED = 20


class ReplicatorFailed(EtlError):
    """The child ended with an error. Its text holds the solution, too: it is what the UI shows."""

    def __init__(self, reason: str, *, solution: str) -> None:
        super().__init__(reason, solution=solution)

    def __str__(self) -> str:
        return with_solution(self.reason, self.solution)


class Replicator:
    """One child process."""

    def __init__(self, payload: str, lease_s: float, shard: str | None = None) -> None:
        self.started_at = time.monotonic()
        self._heard_at = self.started_at
        self._news = threading.Condition()
        #: By pipeline: of several destinations, each is one.
        self._statuses: dict[str, PipelineStatus] = {}
        self._ending: Mapping[str, Any] | None = None
        self._worst_lags: dict[str, WorstLag] = defaultdict(WorstLag)
        self._log_tail: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        # A session of its own: Ctrl-C in the terminal goes to Dagster, which tells us.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "etl_dagster.replicator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stdin, answers, log = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert answers is not None
        assert log is not None
        self._stdin = stdin
        self._threads = [
            self._start_thread(self._drain_answers, answers),
            self._start_thread(self._drain_log, log),
        ]
        self._say(f'{{"lease_s": {lease_s}, "shard": {json.dumps(shard)}, "config": {payload}}}')

    @property
    def pid(self) -> int:
        return self._process.pid

    def status_of(self, pipeline: str) -> PipelineStatus | None:
        return self._statuses.get(pipeline)

    def worst_lag_of(self, pipeline: str) -> WorstLag:
        return self._worst_lags[pipeline]

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def is_silent(self) -> bool:
        """Whether it has reported its status before, and now hangs."""
        return bool(self._statuses) and time.monotonic() - self._heard_at > _SILENCE_S

    def renew(self, lease_s: float) -> None:
        self._say(f"lease {lease_s}")

    def wait_for_words(self, timeout_s: float) -> None:
        """Wait for the first status or the end, whichever is first."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not self._statuses and self.is_alive and time.monotonic() < deadline:
                self._news.wait(0.1)

    def stop(self, timeout_s: float) -> None:
        """Let it end cleanly; kill it if that takes too long."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def was_killed(self) -> bool:
        """Whether it ended without a last word."""
        return self._ending is None

    def failure(self) -> ReplicatorFailed | None:
        """What it ended with; None if it ended cleanly. Only after its end."""
        for thread in self._threads:
            thread.join(1.0)
        code = self._process.returncode
        if self._ending is not None and "error" in self._ending:
            return ReplicatorFailed(
                str(self._ending["error"]), solution=str(self._ending["solution"])
            )
        if code == 0:
            return None
        how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
        log = "\n".join(self._log_tail) or "nothing"
        return ReplicatorFailed(
            f"the replicator ended {how}. Its last log lines:\n{log}",
            solution="No action needed: it is started again, and continues where it was. If it "
            "ends again and again, read its log; SIGKILL often means that memory ran out.",
        )

    def _say(self, line: str) -> None:
        # A child that just ended is noticed by the next look at it.
        with contextlib.suppress(OSError, ValueError):
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()

    @staticmethod
    def _start_thread(target: Any, stream: IO[bytes]) -> threading.Thread:
        thread = threading.Thread(target=target, args=[stream], name="replicator", daemon=True)
        thread.start()
        return thread

    def _drain_answers(self, stream: IO[bytes]) -> None:
        for line in stream:
            answer = json.loads(line)
            with self._news:
                self._heard_at = time.monotonic()
                if "phase" in answer:
                    status = PipelineStatus.from_json(answer)
                    self._statuses[status.pipeline] = status
                    self._worst_lags[status.pipeline].note(status)
                else:
                    self._ending = answer
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _drain_log(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip()
            self._log_tail.append(text)
            print(text, file=sys.stderr, flush=True)


class TickPauses:
    """How far apart the last few ticks were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._pauses: deque[float] = deque(maxlen=_PAUSES_REMEMBERED)

    def lease_s(self, at_least_s: float) -> float:
        """Note a tick; the lease that it gives, in seconds."""
        now, last = self._clock(), self._last
        self._last = now
        if last is not None and now - last <= _LONGEST_PAUSE_OF_TICKS_S:
            self._pauses.append(now - last)
        return max(at_least_s, _PAUSES_PER_LEASE * max(self._pauses, default=0.0))


class Supervisor:
    """The replicator of one pipeline, with all its destinations."""

    def __init__(self) -> None:
        self._tick_pauses = TickPauses()
        self._lock = threading.Lock()
        self._payload = ""
        #: Of several shards, the one that the replicator runs.
        self._shard: str | None = None
        #: By pipeline and table, why the new configuration has it copied again, until a tick is
        #: given this.
        self._coming: dict[str, Mapping[str, str]] = {}
        self._child: Replicator | None = None
        self._generation = 0
        self._pauses = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._failure: ReplicatorFailed | None = None
        self._resume_at = 0.0

    @property
    def pid(self) -> int | None:
        """The child's, while it lives."""
        return self._child.pid if self._child is not None and self._child.is_alive else None

    def keep(
        self,
        config: PipelineConfig,
        lease_s: float,
        *,
        may_spawn: bool = True,
        find_coming: Callable[[PipelineConfig], Mapping[str, str]] = lambda config: {},
    ) -> Supervision:
        """Renew the lease; first start the replicator if there is none and it is due.

        Args:
            config: of one of several destinations, too: the replicator runs all of them.
            lease_s: at least; longer where ticks come late.
            may_spawn: False for a preview, which must not start anything.
            find_coming: called for each destination before the replicator starts with another
                configuration; returns which tables are then copied again, and why.

        Raises:
            ReplicatorFailed: it ended with an error. Raised once; until the next try, the note of
                the `Supervision` repeats it.
        """
        payload = config_payload(config.whole)
        with self._lock:
            if may_spawn:
                lease_s = self._tick_pauses.lease_s(lease_s)
            self._shard = None if config.sharding is None else config.sharding.name
            is_changed = payload != self._payload
            if is_changed and may_spawn:
                self._coming = {each.pipeline: find_coming(each) for each in _run_by_one(config)}
                self._forget(payload)
            note = self._notice_end()
            if is_changed and self._child is not None and not may_spawn:
                note = "the configuration has changed: the next tick starts the replicator with it"
            elif self._child is None:
                note = self._spawn(lease_s, note) if may_spawn else note
            else:
                self._child.renew(lease_s)
            child = self._child
        if child is None:
            failure = self._failure if time.monotonic() < self._resume_at else None
            note = note or "the replicator is not running"
            return Supervision(None, self._generation, note, failure)
        name = config.pipeline
        if child.status_of(name) is None:
            child.wait_for_words(_FIRST_WORDS_S)
            with self._lock:
                self._notice_end()
        return Supervision(
            child.status_of(name),
            self._generation,
            note,
            worst_lag=child.worst_lag_of(name),
            coming=self._coming.pop(name, {}),
        )

    def stop(self, timeout_s: float = _GOODBYE_S) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.stop(timeout_s)

    def _forget(self, payload: str) -> None:
        """Begin again with another configuration: what failed before may work now."""
        if self._child is not None:
            self._child.stop(_GOODBYE_S)
        self._payload, self._child = payload, None
        self._failure, self._resume_at = None, 0.0
        self._pauses.reset()

    def _notice_end(self) -> str | None:
        """A note if the child was killed and is started again at once.

        Raises:
            ReplicatorFailed: the child ended with an error.
        """
        child = self._child
        if child is not None and child.is_alive and child.is_silent:
            child.stop(0.0)
        if child is None or child.is_alive:
            return None
        self._child = None
        failure = child.failure()
        if failure is None:
            return None
        if child.age_s > _STABLE_S:
            self._pauses.reset()
        pause_s = self._pauses.next_delay_s()
        if child.was_killed and self._pauses.attempt == 1:
            # Killed or crashed in the middle of its work: nothing to wait for.
            return failure.reason.split("\n")[0]
        self._failure, self._resume_at = failure, time.monotonic() + pause_s
        raise failure

    def _spawn(self, lease_s: float, note: str | None) -> str | None:
        pause_s = self._resume_at - time.monotonic()
        if pause_s > 0 and self._failure is not None:
            return f"next try in {pause_s:.0f} s, after: {self._failure.reason}"
        self._child = Replicator(self._payload, lease_s, self._shard)
        self._generation += 1
        return f"{note}; started again" if note else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def config_payload(config: PipelineConfig) -> str:
    """The configuration for the replicator's stdin, as JSON. It holds the secrets."""
    left_out = {"destination"} if config.destinations else {"destinations"}
    return json.dumps(config.model_dump(by_alias=True, exclude=left_out), default=_plain)


def _run_by_one(config: PipelineConfig) -> Sequence[PipelineConfig]:
    """The pipelines that a replicator runs, of which this is one.

    It runs all destinations of a pipeline; each shard has a replicator of its own.
    """
    if config.sharding is not None:
        return [config]
    return [*config.whole.members().values()] or [config.whole]


def name_of_replicator(config: PipelineConfig) -> str:
    """The name of the replicator's pipeline; destinations that share it share a supervisor."""
    return config.pipeline if config.sharding is not None else config.whole.pipeline


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return to_jsonable_python(value)


# -- the process's supervisors -----------------------------------------------------------------

_supervisors: dict[str, Supervisor] = {}
_registry_lock = threading.Lock()
_owner_pid = 0


def supervisor_of(pipeline: str) -> Supervisor:
    """This process's supervisor of the pipeline, made at the first call."""
    global _owner_pid
    with _registry_lock:
        if _owner_pid != os.getpid():
            # Children belong to the process that spawned them; a fork starts with none.
            _supervisors.clear()
            _owner_pid = os.getpid()
            atexit.register(stop_all)
        return _supervisors.setdefault(pipeline, Supervisor())


def stop_all() -> None:
    """End every child of this process, side by side."""
    if _owner_pid != os.getpid():
        return
    with _registry_lock:
        supervisors = list(_supervisors.values())
        _supervisors.clear()
    threads = [threading.Thread(target=supervisor.stop) for supervisor in supervisors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
