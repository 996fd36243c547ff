"""What a user's change to a mirrored state means. One rule decides it.

The pipeline's own store is the truth; Meltano's state is its mirror, plus explicit requests. There
is one request: to clear the state of a table asks for a new copy of it. Everything else that can
be done to a mirrored state changes what is displayed, until the mirror writes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from etl_dagster.integrations.meltano.positions.bookmarks import FoundState, TablePosition
from etl_dagster.lsn import Lsn


@dataclass(frozen=True)
class Unchanged:
    """It is as the mirror left it."""


@dataclass(frozen=True)
class New:
    """The mirror has never written it here: if it is missing, or what it says, means nothing."""


@dataclass(frozen=True)
class Cleared:
    """A user asks for a new copy."""

    how: str


@dataclass(frozen=True)
class Renamed:
    """It is gone, and another ID has it: it was renamed."""

    to: str


@dataclass(frozen=True)
class Edited:
    """Something that is only displayed was changed."""


@dataclass(frozen=True)
class Refused:
    """A position was written that can't be honoured."""

    reason: str


Verdict: TypeAlias = Unchanged | New | Cleared | Renamed | Edited | Refused


@dataclass(frozen=True)
class StateRow:
    """A stored state, as far as it matters here."""

    version: int
    #: Both halves together; None where they are not a JSON object.
    state: Mapping[str, Any] | None
    #: Whether the mirror of this pipeline wrote it.
    is_ours: bool


def judge(
    position: TablePosition,
    row: StateRow | None,
    *,
    was_mirrored: bool,
    known_lsns: Collection[int],
    has_history: Callable[[], bool],
    find_move: Callable[[], str | None],
) -> Verdict:
    """What the state's present content asks for.

    Args:
        row: None when there is none.
        was_mirrored: whether the mirror has written it in this place before.
        known_lsns: positions that the mirror wrote a moment ago. An editor that was open while the
            pipeline continued may save one of them; that is not a request to go back.
        has_history: whether the place has any version of a missing state in its history.
        find_move: the ID that a missing state has now; called for a missing state only.
    """
    if row is not None and row.is_ours:
        return Unchanged()
    if not was_mirrored:
        return New()
    if row is None:
        # Clearing a state leaves its history. A place without it is older than the state: it was
        # restored from a backup, or is a standby that had not received the state yet.
        if not has_history():
            return New()
        to = find_move()
        return Cleared("its state was cleared") if to is None else Renamed(to)
    found = FoundState.read(row.state, position.stream)
    if found.is_empty:
        return Cleared("its state was set to one without bookmarks")
    if found.bookmark is None:
        return Refused(f"it has no bookmark of the stream {position.stream}")
    lsn, phase = found.position
    current = None if position.lsn is None else position.lsn.offset
    if lsn != current and lsn not in known_lsns:
        return Refused(_why_not(lsn, position))
    if phase != position.phase and lsn == current:
        return Refused(f"a table's phase is {position.phase}, and it can't be set by hand")
    return Edited()


def _why_not(lsn: Any, position: TablePosition) -> str:
    """Why a table can't be put at this position."""
    if lsn is not None and (not isinstance(lsn, int) or isinstance(lsn, bool) or lsn < 0):
        return "its lsn is not a position in the write-ahead log"
    if position.lsn is None:
        return f"the table is not streamed yet ({position.phase}), so it has no position"
    if lsn is None:
        return f"its lsn is missing; the table is at {position.lsn}"
    wanted = Lsn(lsn)
    if wanted < position.lsn:
        return (
            f"the table can't go back to {wanted}: it is at {position.lsn}, and the source keeps "
            "no changes that are confirmed"
        )
    return (
        f"the table can't continue from {wanted}: it is at {position.lsn}, and the changes between "
        "would be lost"
    )
