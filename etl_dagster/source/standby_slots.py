"""Slots that are created on a standby: what they wait for is logged, asked for, and bounded.

A slot begins where the primary has logged which transactions run. It does so every 15 seconds
while it is written to, and not while it is idle; a standby can't do it. lock_timeout, which bounds
the wait on a primary, has no effect: no lock is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from etl_dagster.errors import EtlError, SlotNotCreated
from etl_dagster.source.connection import translate
from etl_dagster.source.control import SourceControl
from etl_dagster.source.heartbeat import emit_heartbeat
from etl_dagster.source.primary import primary_connection
from etl_dagster.source.standby import (
    LOG_SNAPSHOT,
    PrimaryActivity,
    fetch_primary_activity,
    is_standby,
)

Connection = psycopg.Connection[Any]

#: The primary is asked for the first time once the slot has its place in the WAL, then again, with
#: pauses that double: a record that names open transactions needs another one after their end.
_ASK_AFTER_S: Final = 0.1
_ASK_AT_LEAST_EVERY_S: Final = 1.0
#: From then on, what a slot waits for is worth a word.
_TELL_AFTER_S: Final = 3.0
#: Long enough for a person to read the log, and to run what it says.
GIVE_UP_AFTER_S: Final = 300.0

_log = logging.getLogger(__name__)


@contextmanager
def helped(
    control: SourceControl,
    replication_connection: Connection,
    name: str,
    *,
    give_up_after_s: float = GIVE_UP_AFTER_S,
) -> Iterator[None]:
    """While the block creates a slot on a standby, see to it that this ends.

    Does nothing where the source is a primary.

    Args:
        control: used by no other thread while it waits for this.
        replication_connection: the one that creates the slot.

    Raises:
        SlotNotCreated: the primary did not log what the slot needs in time.
    """
    if not (control.config.standby and control.ask("looking at the source", is_standby)):
        yield
        return
    helper = _Helper(control, replication_connection, name, give_up_after_s)
    thread = threading.Thread(target=helper.run, name=f"slot on a standby {name}", daemon=True)
    thread.start()
    try:
        yield
    except EtlError as error:
        if not helper.has_given_up:
            raise
        waits = helper.activity or PrimaryActivity(is_for_transactions=False)
        raise SlotNotCreated(
            f"slot {name!r} could not be created on the standby within {give_up_after_s:.0f} s: "
            f"it waited for {waits}",
            solution=f"{waits.where}: {waits.solution} The pipeline tries again.",
        ) from error
    finally:
        helper.ended.set()
        thread.join()


class _Helper:
    """Asks the primary for what the slot needs, tells what it waits for, ends the wait."""

    def __init__(
        self, control: SourceControl, creating: Connection, name: str, give_up_after_s: float
    ) -> None:
        self._control = control
        self._config = control.config
        self._creating = creating
        self._name = name
        self._give_up_at = time.monotonic() + give_up_after_s
        self.ended = threading.Event()
        self.has_given_up = False
        #: What it was seen to wait for; None before that was looked at.
        self.activity: PrimaryActivity | None = None

    def run(self) -> None:
        tell_at = time.monotonic() + _TELL_AFTER_S
        wait_s = _ASK_AFTER_S
        with contextlib.ExitStack() as opened:
            primary = None
            while not self.ended.wait(wait_s):
                wait_s = min(2 * wait_s, _ASK_AT_LEAST_EVERY_S)
                now = time.monotonic()
                if now >= self._give_up_at:
                    self.has_given_up = True
                    with contextlib.suppress(psycopg.Error):
                        self._creating.cancel()
                    continue
                try:
                    if self._config.primary_dsn is not None:
                        primary = primary or opened.enter_context(
                            primary_connection(self._control, self._config)
                        )
                        _log_snapshot(primary)
                except EtlError as error:
                    primary = None
                    if now >= tell_at:
                        _log.warning("the primary can't be asked: %s", error.reason)
                if now >= tell_at:
                    tell_at = self._give_up_at
                    self._tell()

    def _tell(self) -> None:
        pid = self._creating.info.backend_pid
        with contextlib.suppress(EtlError):
            self.activity = self._control.ask(
                "looking at what a slot waits for", fetch_primary_activity, pid
            )
        if self.activity is not None:
            _log.warning(
                "slot %r waits for %s. %s: %s",
                self._name,
                self.activity,
                self.activity.where,
                self.activity.solution,
            )


def _log_snapshot(primary: Connection) -> None:
    """Have the primary log which transactions run, now or, without the right to that, soon."""
    try:
        primary.execute("select pg_log_standby_snapshot()")
    except psycopg.errors.InsufficientPrivilege:
        emit_heartbeat(primary)  # a primary that is written to does it by itself
    except psycopg.Error as error:
        raise translate(error, f"running {LOG_SNAPSHOT}") from None
