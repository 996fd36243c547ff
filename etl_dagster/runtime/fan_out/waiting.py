"""Waiting until each of several destinations has caught up, also where some of them fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Protocol

from etl_dagster.errors import DestinationsFailed, EtlError

_AGAIN_S = 0.1


class Waited(Protocol):
    """A pipeline that is waited for."""

    def wait(self, timeout_s: float | None = None) -> bool: ...

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool: ...


class Served(Protocol):
    """A destination whose pipeline is started again whenever it ends; as `Member`."""

    @property
    def failure(self) -> BaseException | None: ...

    @property
    def is_running(self) -> bool: ...

    @property
    def pipeline(self) -> Waited | None: ...


def wait_for_each(
    members: Mapping[str, Served],
    *,
    stop: threading.Event,
    done: threading.Event,
    timeout_s: float | None,
) -> bool:
    """Wait until every destination has caught up; one that fails doesn't keep the others from it.

    Args:
        members: the destinations, by name.
        stop: set once they are told to stop.
        done: set once they have ended.

    Returns:
        False where they were told to stop, or have ended, or the time was over first.

    Raises:
        DestinationsFailed: all that have not caught up have failed, although they are tried again;
            or some have, when the time was over.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    waiting = dict(members)
    while waiting:
        failed = {name: each.failure for name, each in waiting.items() if each.failure is not None}
        left_s = None if deadline is None else deadline - time.monotonic()
        is_over = left_s is not None and left_s <= 0
        if failed.keys() == waiting.keys() or (failed and is_over):
            raise DestinationsFailed({name: _known(failure) for name, failure in failed.items()})
        if is_over or done.is_set():
            return False
        name, member = next((n, each) for n, each in waiting.items() if n not in failed)
        pipeline = member.pipeline
        if pipeline is not None and member.is_running and _has_caught_up(pipeline, left_s):
            del waiting[name]
        elif stop.is_set():
            return False
        else:
            done.wait(_AGAIN_S)
    return True


def _has_caught_up(pipeline: Waited, timeout_s: float | None) -> bool:
    try:
        return pipeline.wait_until_caught_up(timeout_s)
    except Exception:
        if not _has_ended(pipeline):
            raise
        # What it failed with is the destination's failure in a moment, or it is started again.
        return False


def _has_ended(pipeline: Waited) -> bool:
    try:
        return pipeline.wait(0)
    except Exception:
        return True


def _known(failure: BaseException) -> EtlError:
    """The message of an error that isn't ours may hold values."""
    if isinstance(failure, EtlError):
        return failure
    return EtlError(type(failure).__name__, solution="Read the traceback in the log.")
