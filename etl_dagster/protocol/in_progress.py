"""One transaction in progress: its messages as they came, cut back where a part is rolled back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from etl_dagster.errors import DecodeError, RollbackUnclear
from etl_dagster.protocol.alterations import ALTERATION_PREFIX
from etl_dagster.protocol.frames import XLOG_DATA_HEADER
from etl_dagster.protocol.pgoutput import decode_message
from etl_dagster.protocol.receiver import RELATION
from etl_dagster.protocol.row_frames import RowFrames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_HEADER: Final = XLOG_DATA_HEADER.size
#: Header and tag of a frame, and after them the transaction ID that is left out.
_TAGGED: Final = _HEADER + 1
_PREFIXED: Final = _TAGGED + 4
_NUMBER: Final = struct.Struct("!I")
_ROW_TAGS: Final = frozenset(b"IUD")
_MESSAGE: Final = ord("M")
#: What a stretch in the spool begins with: messages, and bytes of their frames. Behind it are the
#: lengths of the frames, 32 bits each, with this bit where a message is not a row.
_STRETCH: Final = struct.Struct("=II")
_LENGTH_BYTES: Final = 4
_NO_ROW: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class SpoolSizes:
    """What of a transaction in progress goes to its spool at once, in bytes."""

    #: So much is written at once, and what is less stays in memory between two segments.
    write: int = 256 * 1024
    kept: int = 64 * 1024
    #: Frames of more than this on average are copied one by one, which takes less memory.
    large: int = 1024


SPOOL_SIZES: Final = SpoolSizes()


class Spool(Protocol):
    """Keeps bytes outside of memory; empty at first."""

    def append(self, data: bytes | memoryview) -> None: ...

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

    #: The number of the message that reports it.
    number: int
    followed_by: int | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A Relation message of the transaction: its number among those of the connection."""

    number: int
    #: Its number among the messages of the transaction.
    message: int
    #: The message without its tag.
    body: bytes


class TransactionInProgress:
    """Keeps what a transaction would have sent so far if it had committed.

    Frames are stored as they are without transaction IDs, in stretches of many. Rows are only put
    aside as they come; which subtransactions they are of is looked at in many at once.

    Subtransactions are nested, so that everything from the first message of one up to its rollback
    is its own or of one inside of it: a rollback cuts the end off, as Postgres' own apply worker
    does. Rows name their subtransaction. Logical messages name the whole transaction only, so one
    that stands just before the first row of a subtransaction may be of either.

    Source: src/backend/replication/logical/worker.c (subxact_info_add, apply_handle_stream_abort),
    pgoutput.c (pgoutput_message).
    """

    def __init__(
        self, xid: int, open_spool: Callable[[], Spool], sizes: SpoolSizes = SPOOL_SIZES
    ) -> None:
        self.xid = xid
        self._sizes = sizes
        self._open_spool = open_spool
        self._spool: Spool | None = None
        #: What is in the spool: the number of the first message of each stretch, and its place.
        self._stretches: list[tuple[int, int]] = []
        self._spooled_bytes = 0
        self._spooled = 0
        #: Messages that aren't in the spool: frames as they came, and lengths as in a stretch.
        self._buffer = bytearray()
        self._lengths: list[int] = []
        #: Of so many of these it is known which subtransaction they are of.
        self._looked_at = 0
        #: The number of the first message of each subtransaction, in this order.
        self._starts: dict[int, int] = {}
        #: Whose message was the last one; None where that has to be found out.
        self._last_xid: int | None = None
        self._alterations: list[_Alteration] = []
        #: By table, in order.
        self._described: dict[int, list[Description]] = {}

    @property
    def count(self) -> int:
        """Messages that are kept."""
        return self._spooled + len(self._lengths)

    # -- taking ----------------------------------------------------------------------------------

    def take_rows(self, get: Callable[[], tuple[int, memoryview]]) -> tuple[int, memoryview]:
        """Take row messages up to another frame, or none; that is returned, and not taken."""
        # As in `ReplicationSession.drain`: a row is put aside, and looked at with many others.
        while True:
            buffer, add_length = self._buffer, self._lengths.append
            row_tags, shortest, room = _ROW_TAGS, _PREFIXED, self._sizes.write - len(self._buffer)
            while room > 0:
                length, frame = get()
                if length <= shortest or frame[_HEADER] not in row_tags:
                    return length, frame
                buffer += frame
                add_length(length)
                room -= length
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
        self._look()
        tag = frame[_HEADER]
        (xid,) = _NUMBER.unpack_from(frame, _TAGGED)
        if tag == _MESSAGE and xid == self.xid:
            self._note_message(frame[_PREFIXED:])
        else:
            self._turn_to(xid, self.count)
            if tag == RELATION:
                (table_id,) = _NUMBER.unpack_from(frame, _PREFIXED)
                found = Description(description_number, self.count, bytes(frame[_PREFIXED:]))
                self._described.setdefault(table_id, []).append(found)
        self._buffer += frame
        self._lengths.append(len(frame) | _NO_ROW)
        self._looked_at = len(self._lengths)

    def _look(self) -> None:
        """Find out which subtransactions the rows are of that were put aside."""
        import numpy as np

        begin = self._looked_at
        if begin == len(self._lengths):
            return
        places = np.array(self._lengths, np.int64) & (_NO_ROW - 1)
        places = (np.cumsum(places) - places)[begin:]
        xids = _numbers_at(self._buffer, places + _TAGGED)
        heads = np.flatnonzero(np.concatenate([[True], xids[1:] != xids[:-1]]))
        first = self._spooled + begin
        for at, xid in zip(heads.tolist(), xids[heads].tolist(), strict=True):
            if xid != self._last_xid:
                self._turn_to(xid, first + at)
        self._looked_at = len(self._lengths)

    def _note_message(self, body: memoryview) -> None:
        if decode_message(body).prefix == ALTERATION_PREFIX:
            self._alterations.append(_Alteration(self.count))
            self._last_xid = None

    def _turn_to(self, xid: int, number: int) -> None:
        """What follows from this message on is of this (sub)transaction."""
        if xid != self.xid:
            self._starts.setdefault(xid, number)
        for alteration in reversed(self._alterations):
            if alteration.followed_by is not None and not _precedes(xid, alteration.followed_by):
                break
            alteration.followed_by = xid
        self._last_xid = xid

    def end_segment(self) -> None:
        """Nothing more comes for a while."""
        if len(self._buffer) > self._sizes.kept:
            self._write()
        else:
            self._look()

    def _write(self) -> None:
        """Move the buffer to the spool."""
        self._look()
        if self._lengths:
            frames, lengths = self._stripped()
            self._append(frames, lengths)
            self._forget_buffer()

    def _stripped(self) -> tuple[memoryview, npt.NDArray[np.uint32]]:
        """The frames of the buffer without the IDs of transactions, and lengths for a stretch."""
        import numpy as np

        lengths = np.array(self._lengths, np.uint32)
        sizes = (lengths & (_NO_ROW - 1)).astype(np.int64)
        begins = np.cumsum(sizes) - sizes
        lengths -= np.uint32(_PREFIXED - _TAGGED)
        if len(self._buffer) > self._sizes.large * len(lengths):
            stripped = bytearray()
            with memoryview(self._buffer) as frames:
                for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
                    stripped += frames[begin : begin + _TAGGED]
                    stripped += frames[begin + _PREFIXED : begin + size]
            return memoryview(stripped), lengths
        is_kept = np.ones(len(self._buffer), bool)
        for at in range(_TAGGED, _PREFIXED):
            is_kept[begins + at] = False
        return np.frombuffer(self._buffer, np.uint8)[is_kept].data, lengths

    def _append(self, frames: memoryview, lengths: npt.NDArray[np.uint32]) -> None:
        """Add a stretch to the spool."""
        if self._spool is None:
            self._spool = self._open_spool()
        head = _STRETCH.pack(len(lengths), len(frames)) + lengths.tobytes()
        self._spool.append(head)
        self._spool.append(frames)
        self._stretches.append((self._spooled, self._spooled_bytes))
        self._spooled_bytes += len(head) + len(frames)
        self._spooled += len(lengths)

    def _forget_buffer(self) -> None:
        self._buffer.clear()
        self._lengths.clear()
        self._looked_at = 0

    # -- rolling back ----------------------------------------------------------------------------

    def roll_back(self, subxid: int) -> None:
        """Forget what a subtransaction brought, and those inside of it.

        Raises:
            RollbackUnclear: a table may have been altered by what is rolled back, or not.
        """
        self._look()
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

    def _cut(self, count: int) -> None:
        """Keep only the first `count` messages."""
        if count >= self._spooled:
            self._cut_buffer(count - self._spooled)
        else:
            assert self._spool is not None
            self._forget_buffer()
            while self._stretches[-1][0] > count:
                self._spooled_bytes = self._stretches.pop()[1]
            self._spooled, place = self._stretches.pop()
            frames, lengths = _read_stretch(self._spool, place)
            self._spool.cut(place)
            self._spooled_bytes = place
            if (kept := count - self._spooled) > 0:
                lengths = lengths[:kept]
                self._append(frames[: int((lengths & (_NO_ROW - 1)).sum())], lengths)
        while self._alterations and self._alterations[-1].number >= count:
            self._alterations.pop()
        for table_id, found in list(self._described.items()):
            while found and found[-1].message >= count:
                found.pop()
            if not found:
                del self._described[table_id]

    def _cut_buffer(self, count: int) -> None:
        size = sum(length & (_NO_ROW - 1) for length in self._lengths[:count])
        del self._buffer[size:]
        del self._lengths[count:]
        self._looked_at = min(self._looked_at, count)

    def close(self) -> None:
        """Forget everything."""
        if self._spool is not None:
            self._spool.close()

    # -- giving back -----------------------------------------------------------------------------

    @property
    def described(self) -> dict[int, Description]:
        """The last Relation message of each table that it describes."""
        return {table_id: found[-1] for table_id, found in self._described.items()}

    def messages(self) -> Iterator[RowFrames | memoryview]:
        """Its frames as an ordinary transaction has them between Begin and Commit, rows together.

        What is returned is valid until the next one.
        """
        import numpy as np

        for frames, lengths in self._kept():
            sizes = lengths & np.uint32(_NO_ROW - 1)
            ends = np.cumsum(sizes, dtype=np.int64)
            others = np.flatnonzero(lengths >= _NO_ROW).tolist()
            begin = first = 0
            for other in [*others, len(lengths)]:
                if other > first:
                    end = int(ends[other - 1])
                    yield RowFrames(frames[begin:end], sizes[first:other])
                    begin = end
                if other < len(lengths):
                    end = int(ends[other])
                    yield frames[begin:end]
                    begin, first = end, other + 1

    def _kept(self) -> Iterator[tuple[memoryview, npt.NDArray[np.uint32]]]:
        for _, place in self._stretches:
            assert self._spool is not None
            yield _read_stretch(self._spool, place)
        self._look()
        if self._lengths:
            yield self._stripped()


def _read_stretch(spool: Spool, place: int) -> tuple[memoryview, npt.NDArray[np.uint32]]:
    """The frames of a stretch, and their lengths as they were written."""
    import numpy as np

    count, size = _STRETCH.unpack(_read(spool, place, _STRETCH.size))
    data = _read(spool, place + _STRETCH.size, count * _LENGTH_BYTES + size)
    lengths = np.frombuffer(data, np.uint32, count)
    return memoryview(data)[lengths.nbytes :], lengths


def _read(spool: Spool, place: int, size: int) -> bytes:
    data = spool.read(place, size)
    if len(data) < size:
        raise DecodeError("the spool of a transaction ends too early")
    return data


def _numbers_at(buffer: bytearray, places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The big-endian numbers of 32 bits that begin at these places."""
    import numpy as np

    numbers = np.ndarray((len(buffer) - 3,), ">u4", buffer, strides=(1,))
    return numbers[places].astype(np.uint32)


def _precedes(xid: int, other: int) -> bool:
    """Whether a transaction began before another; IDs are reused after 2^32.

    >>> _precedes(4294967290, 5)
    True
    """
    return (xid - other) & 0xFFFFFFFF >= 0x80000000
