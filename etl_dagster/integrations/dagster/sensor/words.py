"""A sensor's tick in words: its one line, its cursor, and when a line is worth a log entry."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dagster import AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.checks.lag import CATCHING_UP
from etl_dagster.integrations.dagster.phrases import as_of, with_solution
from etl_dagster.integrations.dagster.sensor.settings import NEW_TABLES
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.words import names

#: Dagster keeps a file for each tick that logs, for good.
_LOG_EVERY_S = 3600.0
_FEW_TABLES = 100
_COMING_SHOWN = 5
#: While the stream is interrupted, the last measured lag says nothing about now.
_LAG_UNKNOWN = "lag not known"


def line(
    status: PipelineStatus,
    keys: Mapping[str, AssetKey],
    *,
    note: str | None = None,
    waiting: Mapping[str, str] | None = None,
    notices: Sequence[str] = (),
    did: object = "",
    new_tables: str = NEW_TABLES,
) -> str:
    """The tick in one line, and what to do where the stream has an error.

    It has a time, because the last line stays in the UI when the sensor is off.

    Args:
        new_tables: what a person does to give tables without an asset their assets.
    """
    parts = [note] if note else []
    if status.error is not None:
        parts.append(f"{status.phase}: {status.error}")
    if status.note is not None:
        parts.append(status.note)
    tables = status.tables.values()
    ready = sum(1 for table in tables if table.state == "ready")
    errored = [table.name for table in tables if table.state == "errored" and not table.retry_at]
    retried = [table.name for table in tables if table.state == "errored" and table.retry_at]
    held = [name for name in waiting or {} if name in status.tables]
    moving = [
        table
        for table in tables
        if table.state not in ("ready", "errored") and table.name not in held
    ]
    unknown = [name for name in status.tables if name not in keys]
    catching_up = [table.name for table in moving if table.state in CATCHING_UP]
    # Nothing copies a table without an asset.
    due = [table.name for table in moving if table.state == "init" and table.name in keys]
    copying = [table.name for table in moving if table.state not in (*CATCHING_UP, "init")]
    since = f"as of {as_of(status.at)}, {ready} of {len(status.tables)} tables"
    if status.phase == "streaming":
        parts.append(
            f"streaming {since} in step, {status.rows_per_second:,.0f} rows/s, "
            f"lag {status.lag_seconds:.1f} s ({status.lag_bytes:,} bytes), "
            f"confirmed {status.confirmed_lsn}"
        )
    else:
        said = "" if status.error is not None else f"{status.phase} "
        parts.append(
            f"{said}{since} were in step, {_LAG_UNKNOWN}, confirmed {status.confirmed_lsn}"
        )
    if due:
        parts.append("waiting for their copy: " + some(due))
    if copying:
        parts.append("being copied: " + some(copying))
    if catching_up:
        parts.append("catching up: " + some(catching_up))
    parts += [f"{name}: {(waiting or {})[name]}" for name in held[:3]]
    if len(held) > 3:
        parts.append("copies held back as well: " + some(held[3:]))
    if errored:
        parts.append("stopped: " + some(errored))
    if retried:
        parts.append("tried again: " + some(retried))
    if unknown:
        parts.append(f"no asset yet ({new_tables}): {some(unknown)}")
    if did:
        parts.append(f"this tick: {did}")
    said = "; ".join([*parts, *notices])
    return said if status.error is None else with_solution(said, status.solution)


def with_coming(note: str | None, coming: Mapping[str, str]) -> str | None:
    """The note, with the tables that are copied again because their settings changed."""
    if not coming:
        return note
    shown = [f"{table}: {why}" for table, why in list(coming.items())[:_COMING_SHOWN]]
    if len(coming) > _COMING_SHOWN:
        shown.append(f"and {len(coming) - _COMING_SHOWN} more tables")
    parts = [note] if note else []
    return "; ".join([*parts, f"settings changed since the copy of {'; '.join(shown)}"])


@dataclass(frozen=True)
class Did:
    """What one tick has done, in numbers."""

    #: Counts the ticks of this process.
    tick: int
    materializations: int = 0
    evaluations: int = 0
    requests: int = 0

    @classmethod
    def of(cls, tick: int, events: Iterable[object], requests: int) -> Did:
        counts = Counter(isinstance(event, AssetMaterialization) for event in events)
        return cls(tick, counts[True], counts[False], requests)

    def __str__(self) -> str:
        counts = (
            (self.requests, "copy requested", "copies requested"),
            (self.materializations, "materialization", "materializations"),
            (self.evaluations, "check result", "check results"),
        )
        parts = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
        return ", ".join(parts) or "nothing new"


def cursor(status: PipelineStatus, did: Did) -> str:
    """For people: what the tick did and how the stream is. The truth is in the state store.

    In the list of ticks the UI shows the first 23 and the last 17 characters, and of a tick without
    a run nothing else but "0 runs requested"; so phase, tables in step and events come first, and
    the lag last. The tick's number makes each cursor differ from the one before.
    """
    ready = sum(1 for table in status.tables.values() if table.state == "ready")
    events = did.materializations + did.evaluations
    is_measured = status.phase == "streaming"
    lag = f"lag {status.lag_seconds:.1f} s" if is_measured else _LAG_UNKNOWN
    return (
        f"{status.phase} {ready}/{len(status.tables)}{f' +{events} new' if events else ''}; "
        f"tick {did.tick}: {did}; as of {as_of(status.at)}; confirmed {status.confirmed_lsn}; "
        f"{lag}"
    )


def cursor_without_stream(note: str, did: Did, solution: str | None = None) -> str:
    """As `cursor`, where there is no status: the one text of the tick on the sensor's page."""
    summary = note.partition("\n")[0][:200]
    if solution:
        advice = with_solution("", solution).strip()[:300].rstrip(".")
        summary = f"{summary.rstrip('.')}. {advice}"
    return f"not streaming: {summary}; tick {did.tick}: {did}; {as_of(time.time())}"


def some(items: Sequence[str]) -> str:
    return names(items, at_most=3)


class TickLog:
    """Which ticks log their line: those that bring something new, and one in an hour."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gist: object = None
        self._at = float("-inf")

    def is_due(self, gist: object) -> bool:
        """Whether to log now.

        Args:
            gist: what the line is about, without numbers that change all the time.
        """
        now = self._clock()
        if gist == self._gist and now - self._at < _LOG_EVERY_S:
            return False
        self._gist, self._at = gist, now
        return True


def gist(
    status: PipelineStatus, note: str | None, requests: int, waiting: Mapping[str, str]
) -> object:
    """What a reader of the log would want to know."""
    states = sorted((table.name, table.state) for table in status.tables.values())
    settled = [(name, state if state in ("ready", "errored") else "copy") for name, state in states]
    # Of many tables a tick looks at some only, and at others the next time.
    held: object = sorted(waiting.items()) if len(settled) <= _FEW_TABLES else bool(waiting)
    # Without how long something has taken, which differs each time.
    said = None if status.note is None else re.sub(r"\d+ s\b", "", status.note)
    return status.phase, status.error, said, note, requests, held, settled
