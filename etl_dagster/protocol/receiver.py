"""What takes the frames of a replication connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from etl_dagster.lsn import Lsn
from etl_dagster.protocol.row_frames import RowFrames

RELATION: Final = ord("R")
#: Stream Start, Stop, Commit and Abort: what is said about transactions in progress.
STREAM_TAGS: Final = frozenset(b"SEcA")
#: `Receiver.drain` returns it at a frame about a transaction in progress, which it doesn't take.
STREAMED: Final = 2


class Receiver(Protocol):
    """Takes frames, such as a `protocol.session.ReplicationSession`."""

    def expect_codec(self, codec: str | None) -> None:
        """Text comes in this encoding, as Python calls it; told before the first frame."""
        ...

    def expect_streamed(self) -> None:
        """Have `drain` stop at messages about transactions in progress; before the first frame."""
        ...

    def drain(self, get: Callable[[], tuple[int, memoryview]]) -> int:
        """Take frames; see `ReplicationSession.drain`."""
        ...

    def take_rows(self, rows: RowFrames) -> bool:
        """Take row messages of the open transaction, as `drain` would one by one.

        Returns whether that is enough for now: what is left of them comes again.
        """
        ...

    @property
    def not_taken(self) -> bytes:
        """The frame at which `drain` returned `STREAMED`."""
        ...

    def relation_frame(self, relation_id: int) -> bytes | None:
        """The frame that last described a table, another object each time; of `expect_streamed`."""
        ...

    @property
    def last_wal_end(self) -> Lsn:
        """How far the server's WAL reached when it sent the last frame."""
        ...

    def take_reply_request(self) -> bool:
        """Whether the server asked for a status update since the last call."""
        ...
