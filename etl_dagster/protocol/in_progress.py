"""One transaction in progress: its messages as they came, cut back where a part is rolled back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from etl_dagster.errors import DecodeError, RollbackUnclear
from etl_dagster.protocol.alterations import ALTERATION_PREFIX
from etl_dagster.protocol.frames import XLOG_DATA_HEADER
from etl_dagster.protocol.pgoutput import decode_message
from etl_dagster.protocol.receiver import RELATION

_HEADER: Final = XLOG_DATA_HEADER.size
#: Header and tag of a frame, and behind them the transaction ID that is left out.
_TAGGED: Final = _HEADER + 1
_PREFIXED: Final = _TAGGED + 4
_NUMBER: Final = struct.Struct("!I")
_ROW_TAGS: Final = frozenset(b"IUD")
_MESSAGE: Final = ord("M")
#: So much is written to the spool at once, and what is less stays in memory between two segments.
_WRITE_BYTES: Final = 256 * 1024
_KEPT_BYTES: Final = 64 * 1024
#: So much is read from the spool at once.
_READ_BYTES: Final = 1024**2


class Spool(Protocol):
    """Keeps bytes outside of memory; empty at first."""

    def append(self, data: bytearray) -> None: ...

    def cut(self, size: int) -> None:
        """Keep only the first `size` bytes."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end."""
        ...

    def close(self) -> None:
        """Forget them."""
        ...


@dataclass(slots=True)
class _Alteration:
    """Where the source reported an altered table, and the oldest transaction that wrote after."""

    offset: int
    followed_by: int | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A Relation message of the transaction: its number among those of the connection."""

    number: int
    offset: int
    #: The message without its tag.
    body: bytes


class TransactionInProgress:
    """Keeps what a transaction would have sent so far if it had committed.

    Frames are stored as they are without transaction IDs, each behind its length.

    Subtransactions are nested, so that everything from the first message of one up to its rollback
    is its own or of one inside of it: a rollback cuts the end off, as Postgres' own apply worker
    does. Rows name their subtransaction. Logical messages name the whole transaction only, so one
    that stands just before the first row of a subtransaction may be of either.

    Source: src/backend/replication/logical/worker.c (subxact_info_add, apply_handle_stream_abort),
    pgoutput.c (pgoutput_message).
    """

    def __init__(self, xid: int, open_spool: Callable[[], Spool]) -> None:
        self.xid = xid
        self._open_spool = open_spool
        self._spool: Spool | None = None
        self._spooled_bytes = 0
        self._buffer = bytearray()
        #: Where the first message of each subtransaction is, in this order.
        self._starts: dict[int, int] = {}
        #: Whose message was the last one; None where that has to be found out.
        self._last_xid: int | None = None
        self._alterations: list[_Alteration] = []
        #: By table, in order.
        self._described: dict[int, list[Description]] = {}

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return self._spooled_bytes + len(self._buffer)

    # -- taking ----------------------------------------------------------------------------------

    def take_rows(self, get: Callable[[], tuple[int, memoryview]]) -> tuple[int, memoryview]:
        """Take row messages up to another frame, or none; that is returned, and not taken."""
        buffer, last_xid = self._buffer, self._last_xid
        number, pack = _NUMBER.unpack_from, _NUMBER.pack
        while True:
            length, frame = get()
            if length <= _PREFIXED or frame[_HEADER] not in _ROW_TAGS:
                return length, frame
            xid = number(frame, _TAGGED)[0]
            if xid != last_xid:
                last_xid = self._turn_to(xid)
            buffer += pack(length - 4)
            buffer += frame[:_TAGGED]
            buffer += frame[_PREFIXED:]
            if len(buffer) >= _WRITE_BYTES:
                self._write()

    def take(self, frame: memoryview, description_number: int) -> None:
        """Take another message: Relation, Type, Truncate or Message.

        Args:
            description_number: of a Relation message, larger than those before.

        Raises:
            DecodeError: it is too short.
        """
        if len(frame) < _PREFIXED + 4:
            raise DecodeError("a message of a transaction in progress ends too early", offset=1)
        tag = frame[_HEADER]
        (xid,) = _NUMBER.unpack_from(frame, _TAGGED)
        if tag == _MESSAGE and xid == self.xid:
            self._note_message(frame[_PREFIXED:])
        else:
            self._turn_to(xid)
            if tag == RELATION:
                (table_id,) = _NUMBER.unpack_from(frame, _PREFIXED)
                found = Description(description_number, self.size, bytes(frame[_PREFIXED:]))
                self._described.setdefault(table_id, []).append(found)
        self._buffer += _NUMBER.pack(len(frame) - 4)
        self._buffer += frame[:_TAGGED]
        self._buffer += frame[_PREFIXED:]

    def _note_message(self, body: memoryview) -> None:
        if decode_message(body).prefix == ALTERATION_PREFIX:
            self._alterations.append(_Alteration(self.size))
            self._last_xid = None

    def _turn_to(self, xid: int) -> int:
        """What follows is of this (sub)transaction."""
        if xid != self.xid:
            self._starts.setdefault(xid, self.size)
        for alteration in reversed(self._alterations):
            if alteration.followed_by is not None and not _precedes(xid, alteration.followed_by):
                break
            alteration.followed_by = xid
        self._last_xid = xid
        return xid

    def end_segment(self) -> None:
        """Nothing more comes for a while."""
        if len(self._buffer) > _KEPT_BYTES:
            self._write()

    def _write(self) -> None:
        if self._spool is None:
            self._spool = self._open_spool()
        self._spool.append(self._buffer)
        self._spooled_bytes += len(self._buffer)
        self._buffer.clear()

    # -- rolling back ----------------------------------------------------------------------------

    def roll_back(self, subxid: int) -> None:
        """Forget what a subtransaction brought, and those inside of it.

        Raises:
            RollbackUnclear: a table may have been altered by what is rolled back, or not.
        """
        start = self._starts.get(subxid)
        if start is not None:
            while self._starts.popitem()[0] != subxid:
                pass
            self._cut(start)
        self._last_xid = None
        # What was written by an older one afterwards proves that it wasn't in this one. The last
        # alteration is followed by the least.
        if self._alterations:
            follower = self._alterations[-1].followed_by
            if follower is None or not _precedes(follower, subxid):
                raise RollbackUnclear(
                    f"transaction {self.xid} altered a table near a savepoint that it rolled back"
                )

    def _cut(self, size: int) -> None:
        if size >= self._spooled_bytes:
            del self._buffer[size - self._spooled_bytes :]
        else:
            assert self._spool is not None
            self._spool.cut(size)
            self._spooled_bytes = size
            self._buffer.clear()
        while self._alterations and self._alterations[-1].offset >= size:
            self._alterations.pop()
        for table_id, found in list(self._described.items()):
            while found and found[-1].offset >= size:
                found.pop()
            if not found:
                del self._described[table_id]

    def close(self) -> None:
        """Forget everything."""
        if self._spool is not None:
            self._spool.close()

    # -- giving back -----------------------------------------------------------------------------

    @property
    def described(self) -> dict[int, Description]:
        """The last Relation message of each table that it describes."""
        return {table_id: found[-1] for table_id, found in self._described.items()}

    def frames(self) -> Iterator[tuple[int, memoryview]]:
        """Its frames with their lengths, as an ordinary transaction has them between Begin and
        Commit; a frame is valid until the next one."""
        place, wanted = 0, _READ_BYTES
        number = _NUMBER.unpack_from
        while place < self.size:
            data = self._read(place, wanted)
            view, at, end = memoryview(data), 0, len(data)
            wanted = _READ_BYTES
            while at + 4 <= end:
                length = number(data, at)[0]
                stop = at + 4 + length
                if stop > end:
                    wanted = max(_READ_BYTES, 4 + length)
                    break
                yield length, view[at + 4 : stop]
                at = stop
            if at == 0 and wanted <= end:
                raise DecodeError("the spool of a transaction ends too early")
            place += at

    def _read(self, offset: int, size: int) -> bytes:
        if self._spool is None:
            return bytes(self._buffer[offset : offset + size])
        if self._buffer:
            self._write()
        return self._spool.read(offset, size)


def _precedes(xid: int, other: int) -> bool:
    """Whether a transaction began before another; IDs are reused after 2^32.

    >>> _precedes(4294967290, 5)
    True
    """
    return (xid - other) & 0xFFFFFFFF >= 0x80000000
