"""The runs of a target, one after the other; writers that come at the same time share one."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from etl_dagster.destinations.singer.failures import TargetFailed, TargetNotAsked
from etl_dagster.destinations.singer.session import TargetSession
from etl_dagster.errors import EtlError
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

_TURN_S: Final = 0.2


class TargetLane:
    """Starts the target when there is something to write, and again after it has ended.

    A target is started after the one before has ended, so that nothing old is written after
    something new.

    Args:
        start: starts the target, on a thread of the lane's; the argument says whether the run is
            for one writer alone.
    """

    def __init__(self, name: str, start: Callable[[bool], TargetSession]) -> None:
        self._name = name
        self._start = start
        self._changed = threading.Condition()
        self._session: TargetSession | None = None
        self._thread: threading.Thread | None = None
        #: None while no caller waits for a run; else whether it wants to be alone in it.
        self._wanted: bool | None = None
        #: Counts starts that failed.
        self._failures = 0
        self._failure: EtlError | None = None
        self._is_stopping = False
        self._is_closed = False
        #: Streams of runs that failed: each is written alone until that has succeeded.
        self.suspects: set[str] = set()

    @contextlib.contextmanager
    def writing(
        self, headers: Mapping[str, bytes], *, alone: bool = False
    ) -> Iterator[TargetSession]:
        """A run to which these streams may be written in this block; waits while there is none.

        What a block sends and doesn't commit stays without a STATE.

        Args:
            headers: the SCHEMA lines by stream.
            alone: share the run with no other writer.

        Raises:
            EtlError: the target can't be started, has ended, or the pipeline stops.
        """
        session = self._join(headers, alone)
        try:
            yield session
        finally:
            session.leave()

    def _join(self, headers: Mapping[str, bytes], alone: bool) -> TargetSession:
        with self._changed:
            failures = self._failures
        while True:
            with self._changed:
                if self._is_stopping or self._is_closed:
                    raise TargetNotAsked(f"{self._name} is given nothing more: the pipeline stops")
                if self._failures != failures and self._failure is not None:
                    raise self._failure
                session = self._session
                if session is None:
                    self._want(alone)
                    self._changed.wait(_TURN_S)
                    continue
            # Without the lock: to join may wait for the pipe.
            if session.alone == alone and session.join(headers):
                return session
            session.finish()
            with self._changed:
                if self._session is session:
                    self._changed.wait(_TURN_S)

    def _want(self, alone: bool) -> None:
        if self._wanted is None:
            self._wanted = alone
        if self._thread is None:
            self._thread = Background(self._work, name=self._name)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._wanted is None and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                alone = bool(self._wanted)
            try:
                session = self._start(alone)
            except EtlError as error:
                self._note_failure(error)
                continue
            except Exception as error:
                _log.debug("%s can't be started", self._name, exc_info=True)
                self._note_failure(
                    TargetFailed(f"{self._name} can't be started: {type(error).__name__}")
                )
                continue
            with self._changed:
                self._session, self._wanted = session, None
                self._changed.notify_all()
            # The stop came while it was being started, and no caller will join it.
            if self._is_stopping or self._is_closed:
                session.stop()
            failure = session.serve()
            with self._changed:
                if failure is not None:
                    self.suspects |= session.streams
                elif session.alone:
                    self.suspects -= session.streams
                self._session = None
                self._changed.notify_all()

    def _note_failure(self, error: EtlError) -> None:
        with self._changed:
            self._failure, self._wanted = error, None
            self._failures += 1
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Begin nothing more, and end what waits; returns at once."""
        # From a signal handler, whose thread may be in one of the methods: no lock is taken.
        self._is_stopping = True
        session = self._session
        if session is not None:
            threading.Thread(target=session.stop, daemon=True).start()

    def close(self) -> None:
        """Let the target write what it has, and end; idempotent."""
        with self._changed:
            self._is_closed = True
            if self._session is not None:
                self._session.finish()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
