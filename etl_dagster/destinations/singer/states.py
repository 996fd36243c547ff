"""What a target was told in the STATEs of one run, and what of that it has written back.

The value of a STATE has a number for each stream. Every record of the stream that belongs to a
write of that number, or a smaller one, stands before it. What a target writes to its stdout is such
a value, once everything before it is durable; then these writes are.

A target may write some streams and not others, and then a mixture of the states that it has seen,
beginning with the first. So the first STATE of a run that gets several has no number, and a write
counts when the numbers of its own streams have come back.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from etl_dagster.destinations.singer import streams


@dataclass(frozen=True, eq=False)
class _Write:
    number: int
    streams: frozenset[str]
    durable: Future[None]


class States:
    """Counts the writes of a run. Not safe for several threads."""

    def __init__(self) -> None:
        #: A state that comes back from elsewhere has another one.
        self._run = uuid.uuid4().hex
        self._number = 0
        self._bookmarks: dict[str, dict[str, Any]] = {}
        self._pending: list[_Write] = []

    @property
    def are_pending(self) -> bool:
        """Whether some write has not come back yet."""
        return bool(self._pending)

    def add(self, bookmarks: Mapping[str, Mapping[str, Any]]) -> Future[None]:
        """A write whose records were all sent: by stream, our position in it.

        Returns:
            A future to complete once `written_back` returns it.
        """
        self._number += 1
        mine = {"run": self._run, "number": self._number}
        for stream, bookmark in bookmarks.items():
            self._bookmarks[stream] = {**bookmark, **mine}
        durable: Future[None] = Future()
        self._pending.append(_Write(self._number, frozenset(bookmarks), durable))
        return durable

    def line(self) -> bytes:
        """The STATE line that has all writes so far."""
        return streams.line({"type": "STATE", "value": {"bookmarks": self._bookmarks}})

    def written_back(self, text: bytes) -> list[Future[None]]:
        """The writes that a line of stdout says are durable.

        A line that isn't a state, or is one of another run, is ignored.
        """
        try:
            bookmarks = json.loads(text)["bookmarks"]
            numbers = {
                stream: bookmark["number"]
                for stream, bookmark in bookmarks.items()
                if bookmark["run"] == self._run and isinstance(bookmark["number"], int)
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return []
        done = [write for write in self._pending if self._has(numbers, write)]
        self._pending = [write for write in self._pending if write not in done]
        return [write.durable for write in done]

    def _has(self, numbers: Mapping[str, int], write: _Write) -> bool:
        return all(
            write.number <= numbers.get(stream, 0) <= self._number for stream in write.streams
        )

    def take_pending(self) -> list[Future[None]]:
        """The writes that have not come back, and don't any more."""
        left, self._pending = self._pending, []
        return [write.durable for write in left]
