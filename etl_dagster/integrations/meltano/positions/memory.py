"""What the mirror remembers in the pipeline's own store, to tell a cleared state from a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from etl_dagster.model.coordination import Notes
from etl_dagster.model.schema import TableId

#: The key of the note.
NOTE_KEY = "meltano"
_NOTICES_KEPT = 20


@dataclass(frozen=True)
class Entry:
    """A state that was mirrored."""

    table_id: TableId
    #: ``schema.table``.
    table: str
    #: While a request is open: the table's state (`state_key`) when the request was seen. A copy is
    #: asked for only in that state, so never twice, however often the process dies in between.
    requested_at: str | None = None
    #: What was done about the last edit.
    note: str | None = None


@dataclass(frozen=True)
class Notice:
    """Something that users should know."""

    #: ISO 8601, UTC.
    at: str
    state_id: str
    table: str
    #: ``copy``, ``refused``, ``edited``, ``moved``, ``shared``.
    kind: str
    text: str


@dataclass
class MirrorMemory:
    """All that the mirror remembers. Belongs to its thread."""

    #: Where the states are; what was written at another place doesn't count.
    place: str
    entries: dict[str, Entry] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    #: Why the last look at the states failed.
    problem: str | None = None

    @classmethod
    def load(cls, store: Notes, place: str) -> MirrorMemory:
        """What was remembered of this place; of another place, only the notices."""
        payload = store.get_note(NOTE_KEY) or {}
        memory = cls(place, notices=_notices(payload))
        if payload.get("place") == place:
            memory.entries = {
                state_id: Entry(
                    int(entry["table_id"]),
                    str(entry["table"]),
                    entry.get("requested_at"),
                    entry.get("note"),
                )
                for state_id, entry in payload.get("entries", {}).items()
            }
        return memory

    def keep(self, store: Notes) -> None:
        store.put_note(
            NOTE_KEY,
            {
                "place": self.place,
                "entries": {state_id: _plain(entry) for state_id, entry in self.entries.items()},
                "notices": [vars(notice) for notice in self.notices],
                "problem": self.problem,
            },
        )

    def notify(self, state_id: str, table: str, kind: str, text: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.notices = [*self.notices, Notice(at, state_id, table, kind, text)][-_NOTICES_KEPT:]


def _plain(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in vars(entry).items() if value is not None}


def _notices(payload: Mapping[str, Any]) -> list[Notice]:
    names = Notice.__dataclass_fields__
    return [
        Notice(**{name: str(notice.get(name, "")) for name in names})
        for notice in payload.get("notices", [])
    ]


def keep_problem(store: Notes, problem: str) -> None:
    """Store why nothing can be mirrored, where the memory could not be loaded yet."""
    store.put_note(NOTE_KEY, {**(store.get_note(NOTE_KEY) or {}), "problem": problem})


def load_notices(store: Notes) -> tuple[list[Notice], str | None]:
    """The latest notices, the newest last, and why the mirror fails now; None if it doesn't."""
    payload = store.get_note(NOTE_KEY) or {}
    problem = payload.get("problem")
    return _notices(payload), problem if isinstance(problem, str) else None
