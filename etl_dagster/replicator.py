"""The leased child: streams one pipeline for as long as its parent renews the lease.

Run as ``python -m etl_dagster.replicator``; it knows nothing of Dagster. On stdin come lines:
first the JSON ``{"config": {...}, "lease_s": 30}`` (secrets travel this way and no other), with
``"shard"`` where it is one of several, then ``lease SECONDS`` as often as the parent likes, and
perhaps ``stop``. On stdout go JSON lines: a `PipelineStatus` whenever something changed, twice a
second at most, and a last line that says why it ended, ``{"stopped": ...}`` or ``{"error": ...,
"solution": ...}``.

It ends by itself when stdin closes (the parent is gone), when the lease is over (the parent lost
interest, or hangs), on ``stop``, on SIGTERM, or when a newer process took the pipeline over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etl_dagster.assembly import build_destination, opened_members, opened_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, LeaseLost, PipelineInUse, Superseded
from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
from etl_dagster.log_fields import JsonLines
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.resetting import (
    ALL,
    ONE,
    Extent,
    follow_request,
    is_reset_wanted,
    offer_resets,
)
from etl_dagster.runtime.showing.exporting import exporting
from etl_dagster.runtime.showing.observer import SILENT, Observer
from etl_dagster.runtime.showing.status import PipelineStatus

_log = logging.getLogger(__name__)

EXIT_STOPPED = 0
EXIT_CRASHED = 1
EXIT_FAILED = 3

_TICK_S = 0.25
_STATUS_EVERY_S = 0.5
#: An unchanged status is told again this often, so that its age says something.
_STATUS_AT_LEAST_S = 5.0
#: How often a standby looks whether the pipeline is free.
_STANDBY_POLL_S = 1.0
#: How often it looks for a request for a reset; a query each time.
_RESET_POLL_S = 2.0
#: From being told to stop to the end of the process, at most.
_SHUTDOWN_S = 20.0
#: Once the pipeline has ended, it may take so long to take leave of servers.
_LEAVING_S = 1.0


def main() -> int:
    """The process: configuration from stdin, then stream until there is a reason to stop."""
    logging.basicConfig(
        level=os.environ.get("ETL_DAGSTER_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s replicator %(levelname)s %(message)s",
    )
    if os.environ.get("ETL_DAGSTER_LOG_FORMAT") == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    # A line for every request would drown the rest.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    orders, answers = _Orders(sys.stdin.fileno()), _Answers(_take_stdout())
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda signum, frame: orders.stop("told to stop by a signal"))
    first = orders.read_first_line()
    if first is None:
        return EXIT_STOPPED
    request = json.loads(first)
    orders.renew(float(request["lease_s"]))
    # Values were expanded and overridden by the parent; a password may well hold "${".
    config = PipelineConfig.model_validate(request["config"])
    work = _Work(config.members()[shard] if (shard := request.get("shard")) else config)
    work.start()
    while orders.stopped is None and not work.is_done:
        orders.read(_TICK_S)
        answers.tell_statuses(work.statuses())
    work.shutdown()
    deadline = time.monotonic() + _SHUTDOWN_S
    while not work.is_done and time.monotonic() < deadline:
        orders.read(_TICK_S)
        answers.tell_statuses(work.statuses())
        if work.is_leaving:
            deadline = min(deadline, time.monotonic() + _LEAVING_S)
    answers.tell_last(work.ending(orders.stopped))
    exit_code = work.exit_code
    if not (work.is_done or work.is_leaving):
        _log.error("the pipeline did not stop within %d s; ending the process", _SHUTDOWN_S)
        exit_code = EXIT_CRASHED
    logging.shutdown()
    # A thread of a driver that hangs must not keep the process; everything durable is.
    os._exit(exit_code)


def _take_stdout() -> int:
    """Stdout for the answers alone: what a library or a destination prints goes to the log."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


class _Orders:
    """What the parent says on stdin; also the clock of the lease."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = b""
        self._is_closed = False
        self._lease_ends = float("inf")
        #: Why to stop; None while there is no reason.
        self.stopped: str | None = None

    def renew(self, lease_s: float) -> None:
        self._lease_ends = time.monotonic() + lease_s

    def stop(self, why: str) -> None:
        """Safe in a signal handler."""
        self.stopped = self.stopped or why

    def read_first_line(self) -> str | None:
        """Wait for the first line; None when stdin closed before, or a signal came."""
        while self.stopped is None:
            if b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                return line.decode()
            self._receive(_TICK_S)
        return None

    def read(self, timeout_s: float) -> None:
        """Follow what was said, waiting for it up to the timeout."""
        self._receive(timeout_s)
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._follow(line.decode().split())
        if time.monotonic() > self._lease_ends:
            self.stop("the lease is over")

    def _follow(self, words: list[str]) -> None:
        match words:
            case ["lease", seconds]:
                self.renew(float(seconds))
            case ["stop"]:
                self.stop("told to stop")

    def _receive(self, timeout_s: float) -> None:
        if self._is_closed:
            time.sleep(timeout_s)
            return
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return
        data = os.read(self._fd, 65536)
        if not data:
            self._is_closed = True
            self.stop("the parent is gone")
        self._unread += data


class _Answers:
    """Lines to the parent; one that doesn't read never holds the process up."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        self._unsent = b""
        #: By pipeline, what was told last, and when.
        self._told: dict[str, tuple[dict[str, Any], float]] = {}

    def tell_statuses(self, statuses: Sequence[PipelineStatus]) -> None:
        self._send()
        for status in statuses:
            self._tell_status(status)

    def _tell_status(self, status: PipelineStatus) -> None:
        now = time.monotonic()
        told, told_at = self._told.get(status.pipeline, ({}, float("-inf")))
        if self._unsent or now - told_at < _STATUS_EVERY_S:
            return
        payload = status.to_json()
        is_news = payload | {"at": 0} != told | {"at": 0}
        if is_news or now - told_at >= _STATUS_AT_LEAST_S:
            self._told[status.pipeline] = payload, now
            self._tell(payload)

    def tell_last(self, payload: Mapping[str, Any]) -> None:
        self._tell(payload)
        deadline = time.monotonic() + 1.0
        while self._unsent and time.monotonic() < deadline:
            select.select([], [self._fd], [], 0.1)
            self._send()

    def _tell(self, payload: Mapping[str, Any]) -> None:
        self._unsent += json.dumps(payload).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # the parent is gone; stdin says so, too


class _Work:
    """The pipeline, on a thread of its own: its start may wait for a server for a while."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replicator", daemon=True)
        self._pipeline: Pipeline | FanOut | None = None
        #: Until it has started, its status is not shown.
        self._starting: Pipeline | None = None
        self._failure: BaseException | None = None
        self._observer: Observer = SILENT
        #: Whether another process has the pipeline, and this one waits for its end.
        self._is_standby = False

    def start(self) -> None:
        self._thread.start()

    def shutdown(self) -> None:
        self._stop.set()
        for pipeline in (self._starting, self._pipeline):
            if pipeline is not None:
                pipeline.shutdown()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def is_leaving(self) -> bool:
        """Whether the pipeline has ended, after it was told to stop."""
        if not self._stop.is_set() or self._pipeline is None:
            return False
        try:
            return self._pipeline.wait(0)
        except BaseException as failure:
            self._failure = self._failure or failure
            return True

    @property
    def exit_code(self) -> int:
        if self._failure is None or isinstance(self._failure, Superseded):
            return EXIT_STOPPED
        return EXIT_FAILED if isinstance(self._failure, EtlError) else EXIT_CRASHED

    def statuses(self) -> Sequence[PipelineStatus]:
        """Of the pipeline, or of the one to each of its destinations; none before the start."""
        if self._is_standby:
            return [
                PipelineStatus(
                    pipeline=config.pipeline,
                    destination=config.destination.type,
                    phase="starting",
                    error="another process runs this pipeline; waiting for its end",
                    at=time.time(),
                )
                for config in self._config.members().values() or [self._config]
            ]
        match self._pipeline:
            case None:
                return []
            case FanOut() as fan_out:
                return list(fan_out.statuses().values())
            case pipeline:
                return [pipeline.status()]

    def ending(self, stopped: str | None) -> Mapping[str, Any]:
        """The last line."""
        match self._failure:
            case Superseded() as failure:
                return {"stopped": failure.reason}
            case EtlError() as failure:
                return {
                    "error": failure.reason,
                    "solution": failure.solution,
                    "kind": type(failure).__name__,
                    "retryable": failure.retryable,
                }
            case None:
                return {"stopped": stopped or "the pipeline ended"}
            case failure:
                # Its message may hold values; the log has the rest.
                return {
                    "error": f"{type(failure).__name__} in the replicator",
                    "solution": "The log has the details.",
                    "kind": type(failure).__name__,
                    "retryable": True,
                }

    def _run(self) -> None:
        try:
            with (
                opened_store(self._config) as store,
                exporting(self._config, waits_for_address=True) as self._observer,
            ):
                if self._config.destinations:
                    self._stream_to_several(store)
                else:
                    self._stream(store)
        except EtlError as failure:
            self._failure = failure
            if not self._stop.is_set():
                _log.error("%s", failure.reason)
        except BaseException as failure:
            self._failure = failure
            log_failure(_log, "the replicator failed", failure)

    def _stream(self, store: CoordinatingStore) -> None:
        while not self._stop.is_set():
            if is_reset_wanted(store) and not store.is_leased("apply"):
                _log.info("a reset of %s was requested", self._config.pipeline)
                follow_request(self._config, store)
            # A pipeline starts once, and checks the source before it touches anything.
            pipeline = Pipeline(
                self._config,
                store,
                build_destination(self._config),
                copies="elsewhere",
                observer=self._observer,
            )
            self._starting = pipeline
            if self._stop.is_set():
                return
            try:
                pipeline.start()
            except PipelineInUse:
                self._stand_by(store)
                continue
            self._pipeline = pipeline
            if self._stop.is_set():
                pipeline.shutdown()
            try:
                offer_resets(store)
                with mirrored_positions(self._config, store, pipeline.status):
                    is_ended = _wait_for_end_or_reset(pipeline, store)
                if is_ended:
                    return
            except LeaseLost:
                pass
            self._pipeline = None

    def _stream_to_several(self, store: CoordinatingStore) -> None:
        while not self._stop.is_set():
            with opened_members(self._config) as parts:
                if is_reset_wanted(store, ALL) and not store.is_leased(ALL.lease):
                    _log.info("a reset of %s was requested", self._config.pipeline)
                    stores = {name: each.store for name, each in parts.items()}
                    follow_request(self._config, store, stores)
                fan_out = FanOut(
                    self._config,
                    store,
                    parts,
                    copies="elsewhere",
                    follows_resets=True,
                    observer=self._observer,
                )
                self._pipeline = fan_out
                if self._stop.is_set():
                    return
                try:
                    fan_out.start()
                    offer_resets(store, ALL)
                    with contextlib.ExitStack() as mirrors:
                        for member in fan_out.members.values():
                            mirrors.enter_context(
                                mirrored_positions(member.config, member.store, member.status)
                            )
                        is_ended = _wait_for_end_or_reset(fan_out, store, ALL)
                    if is_ended:
                        return
                    continue
                except LeaseLost:
                    continue
                except PipelineInUse:
                    self._pipeline = None
            self._stand_by(store)

    def _stand_by(self, store: CoordinatingStore) -> None:
        """Wait until no other process has the pipeline."""
        self._is_standby = True
        _log.info("another process runs %s; waiting for its end", self._config.pipeline)
        name = (ALL if self._config.destinations else ONE).lease
        while not self._stop.wait(_STANDBY_POLL_S) and store.is_leased(name):
            pass
        self._is_standby = False


def _wait_for_end_or_reset(
    pipeline: Pipeline | FanOut, store: CoordinatingStore, of: Extent = ONE
) -> bool:
    """Whether the pipeline has ended by itself; else it was stopped because a reset is wanted."""
    while not pipeline.wait(_RESET_POLL_S):
        try:
            is_wanted = is_reset_wanted(store, of)
        except EtlError:
            continue  # the pipeline meets the same
        if is_wanted:
            pipeline.shutdown()
            pipeline.wait()
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
