"""One stream for many readers: frames are kept until every branch has taken them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, Literal, TypeAlias

from etl_dagster.errors import EtlError, SourceUnreachable
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.protocol.batch import BEGIN, COMMIT, COMMIT_FRAME
from etl_dagster.protocol.frames import KEEPALIVE_TAG, XLOG_DATA_HEADER, decode_keepalive
from etl_dagster.protocol.pgoutput import Relation, decode_relation
from etl_dagster.protocol.receiver import RELATION, STREAM_TAGS, STREAMED
from etl_dagster.protocol.row_frames import RowFrames
from etl_dagster.protocol.session import ReplicationSession

_HEADER: Final = XLOG_DATA_HEADER.size
_ROW_TAGS: Final = frozenset(b"IUD")
#: So much is handed over at once.
_CHUNK_BYTES = 256 * 1024
#: Memory of a frame that is kept, besides its bytes.
_FRAME_OVERHEAD = 130
#: A branch reads on while more arrives, but no longer than this without a look at other work.
_STRETCH_S = 0.05
_NOTHING: Final = (0, memoryview(b""))

#: Frames with their lengths, or rows that were put aside, shared by all branches; and the memory
#: of all of them.
_Chunk: TypeAlias = tuple[list[tuple[int, bytes]] | RowFrames, int]
#: ``waiting`` for a place between two transactions; ``ahead`` of its reader, who is still at
#: another stream; ``open``; or ``gone``.
_Phase: TypeAlias = Literal["waiting", "ahead", "open", "gone"]


class Tee:
    """What one replication connection brings, for every branch; a `protocol.receiver.Receiver`.

    `drain` and `wait_for_room` belong to the thread that reads the connection, the rest is for
    any. Frames are not decoded here, but for what tells where a transaction begins and ends.

    Args:
        start_lsn: where the connection starts to stream.
        buffer_bytes: memory of what one branch has not taken yet. While an open branch has more,
            nothing should be read (`wait_for_room`); one that is ahead of its reader is dropped.
        request_keepalive: asks the server how far it is.
        changed: notified of whatever changes; its owner's lock, where that has more to guard.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        start_lsn: Lsn,
        *,
        buffer_bytes: int,
        request_keepalive: Callable[[], None] = lambda: None,
        changed: threading.Condition | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.start_lsn = start_lsn
        self._buffer_bytes = buffer_bytes
        self.request_keepalive = request_keepalive
        self._changed = changed or threading.Condition()
        self._branches: list[Branch] = []
        self._relations: dict[int, bytes] = {}
        self._codec: str | None = None
        self._is_in_transaction = False
        self._reached = start_lsn.offset
        self._wal_end = 0
        self._reply_requested = False
        self._ending: EtlError | None = None
        self._expects_streamed = False
        self.not_taken = b""

    # -- what the connection brings --------------------------------------------------------------

    def expect_codec(self, codec: str | None) -> None:
        self._codec = codec

    def expect_streamed(self) -> None:
        self._expects_streamed = True

    def relation_frame(self, relation_id: int) -> bytes | None:
        return self._relations.get(relation_id)

    def drain(self, get: Callable[[], tuple[int, memoryview]]) -> int:
        """Take frames until there are none, or as many as are handed over at once.

        Returns:
            0 or -1, as `get` did; 1 when there may be more, or no room for it; or `STREAMED`.
        """
        frames: list[tuple[int, bytes]] = []
        size, status = 0, 1
        while size < _CHUNK_BYTES:
            length, view = get()
            if length <= 0:
                status = length
                break
            frame = bytes(view)
            frames.append((length, frame))
            size += length + _FRAME_OVERHEAD
            tag = frame[_HEADER] if length > _HEADER else 0
            if tag in _ROW_TAGS:
                continue
            if tag == BEGIN:
                self._is_in_transaction = True
            elif tag == COMMIT and length == COMMIT_FRAME.size:
                self._is_in_transaction = False
                self._reached = max(self._reached, COMMIT_FRAME.unpack(frame)[1])
                if self._has_waiting:
                    break
            elif self._expects_streamed and tag in STREAM_TAGS:
                frames.pop()
                size -= length + _FRAME_OVERHEAD
                self.not_taken, status = frame, STREAMED
                break
            else:
                self._control(frame, tag)
        if frames:
            self._note_wal_end(frames[-1][1])
        self._hand_over(frames, size)
        # The connection reads on while more arrives; where there is no more room, it must not.
        return 1 if status == 0 and not self.has_room else status

    def take_rows(self, rows: RowFrames) -> bool:
        """Hand row messages to the branches; whether there is no room for more."""
        if not rows.is_empty:
            rest = rows.take_rest()
            self._wal_end = max(self._wal_end, rest.wal_end)
            self._hand_over(rest, rest.size)
        return not self.has_room

    def _control(self, frame: bytes, tag: int) -> None:
        """Notice what a branch that joins later must know; each session checks the frame."""
        if tag == RELATION and len(frame) > _HEADER + 5:
            self._relations[int.from_bytes(frame[_HEADER + 1 : _HEADER + 5], "big")] = frame
        elif frame[:1] == bytes([KEEPALIVE_TAG]):
            keepalive = decode_keepalive(frame)
            self._reply_requested |= keepalive.reply_requested
            self._wal_end = max(self._wal_end, keepalive.wal_end.offset)
            if not self._is_in_transaction:
                self._reached = max(self._reached, keepalive.wal_end.offset)

    def _note_wal_end(self, frame: bytes) -> None:
        if len(frame) > _HEADER:
            self._wal_end = max(self._wal_end, XLOG_DATA_HEADER.unpack_from(frame)[2])

    def _hand_over(self, frames: list[tuple[int, bytes]] | RowFrames, size: int) -> None:
        with self._changed:
            if size:
                for branch in list(self._branches):
                    if branch.phase != "waiting":
                        branch._queue.append((frames, size))
                        branch._queued_bytes += size
                    if branch.phase == "ahead" and branch._queued_bytes > self._buffer_bytes:
                        self._drop(branch)
            if not self._is_in_transaction:
                for branch in self._branches:
                    if branch.phase == "waiting":
                        branch._place(Lsn(self._reached), dict(self._relations))
            self._changed.notify_all()

    @property
    def _has_waiting(self) -> bool:
        return any(branch.phase == "waiting" for branch in self._branches)

    def take_reply_request(self) -> bool:
        requested, self._reply_requested = self._reply_requested, False
        return requested

    @property
    def last_wal_end(self) -> Lsn:
        return Lsn(self._wal_end)

    @property
    def reached(self) -> Lsn:
        """Every transaction that was committed before was handed to the branches."""
        return Lsn(self._reached)

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether there is room in every open branch, waiting for it.

        While the reader of another branch has taken everything and wants more, the time counts: as
        `Branch.asked_s` for that one, and as `Branch.held_up_s` for those without room.
        """
        with self._changed:
            full = self._full()
            if not full:
                return True
            asking = [branch for branch in self._branches if branch.is_asking and not branch._queue]
            began = self._clock()
            self._changed.wait(timeout_s)
            if asking:
                waited_s = self._clock() - began
                for branch in full:
                    branch.held_up_s += waited_s
                for branch in asking:
                    branch.asked_s += waited_s
            return not self._full()

    @property
    def has_room(self) -> bool:
        """Whether every open branch has room for more."""
        with self._changed:
            return not self._full()

    def _full(self) -> list[Branch]:
        return [
            branch
            for branch in self._branches
            if branch.phase == "open" and branch._queued_bytes >= self._buffer_bytes
        ]

    @property
    def is_waiting(self) -> bool:
        """Whether a branch has frames that its reader has not taken."""
        with self._changed:
            return any(each.phase == "open" and each._queued_bytes for each in self._branches)

    def end(self, error: EtlError | None = None) -> None:
        """The connection ended; every branch raises the error."""
        with self._changed:
            self._ending = error or SourceUnreachable("the shared stream ended")
            self._changed.notify_all()

    # -- branches --------------------------------------------------------------------------------

    def branch(
        self,
        *,
        is_started: bool,
        is_ahead: bool = False,
        on_placed: Callable[[Lsn], None] = lambda start_lsn: None,
        on_confirm: Callable[[Lsn], None] = lambda lsn: None,
    ) -> Branch:
        """A new branch: from the start where the connection isn't open yet, else from the next
        place between two transactions on.

        Args:
            is_started: whether the connection may have brought anything.
            is_ahead: whether its reader is still at another stream: it gets a buffer, and holds
                nothing up.
            on_placed: called with where it starts, before anything after that is read.
            on_confirm: called with what its reader has made durable.
        """
        made = Branch(self, "ahead" if is_ahead else "open", on_placed, on_confirm)
        with self._changed:
            if not is_started:
                made._place(self.start_lsn, {})
            self._branches.append(made)
        return made

    def _drop(self, branch: Branch) -> None:
        branch.phase = "gone"
        branch._queue.clear()
        branch._queued_bytes = 0
        if branch in self._branches:
            self._branches.remove(branch)


class Branch:
    """One reader's part of a tee: a `runtime.streaming.stream_loop.ChangeStream`."""

    def __init__(
        self,
        tee: Tee,
        when_placed: Literal["ahead", "open"],
        on_placed: Callable[[Lsn], None],
        on_confirm: Callable[[Lsn], None],
    ) -> None:
        self._tee = tee
        self._when_placed = when_placed
        self._on_placed = on_placed
        self._on_confirm = on_confirm
        self.phase: _Phase = "waiting"
        #: How long others wanted more, and got none because this one had no room for it, seconds.
        self.held_up_s = 0.0
        #: How long this one wanted more, and got none because of others, seconds.
        self.asked_s = 0.0
        #: Whether its reader has taken everything, and waits for more now.
        self.is_asking = False
        self._queue: deque[_Chunk] = deque()
        self._queued_bytes = 0
        self._start_lsn = LSN_ZERO
        #: What a session must know before its first frame; None once it does.
        self._relations: Mapping[int, bytes] | None = {}
        self._session: ReplicationSession | None = None
        self._is_interrupted = False
        self.is_opened = False
        self._current: tuple[Iterator[tuple[int, bytes]] | RowFrames, int] | None = None

    def _place(self, start_lsn: Lsn, relations: Mapping[int, bytes]) -> None:
        self._start_lsn = start_lsn
        self._relations = relations
        self.phase = self._when_placed
        self._on_placed(start_lsn)

    def wait_placed(self, timeout_s: float) -> bool:
        """Whether the branch has its place in the stream, waiting for it.

        Raises:
            EtlError: the connection ended.
        """
        with self._tee._changed:
            self._tee._changed.wait_for(
                lambda: self.phase != "waiting" or self._tee._ending is not None, timeout_s
            )
            self._require_tee()
            return self.phase in ("ahead", "open")

    @property
    def is_alive(self) -> bool:
        """Whether everything since its start is still there to be read."""
        return self.phase in ("ahead", "open") and self._tee._ending is None

    @property
    def is_lost(self) -> bool:
        """Whether it is of no more use."""
        return self.phase == "gone" or self._tee._ending is not None

    def take_over(self) -> bool:
        """Its reader comes: from now on it is waited for. False where it has lost frames."""
        with self._tee._changed:
            if self.phase == "ahead":
                self.phase = "open"
            return self.is_alive

    def reads_into(self, session: ReplicationSession) -> Branch:
        """The stream that fills this session, once."""
        self._session = session
        return self

    # -- as a stream -----------------------------------------------------------------------------

    @property
    def start_lsn(self) -> Lsn:
        """Transactions that were committed before are not in it."""
        return self._start_lsn

    @property
    def is_over(self) -> bool:
        """Whether its reader was sent away."""
        return self.phase == "gone"

    def open(self) -> None:
        self.is_opened = True
        with self._tee._changed:
            self._require_tee()

    def read(self, timeout_s: float) -> bool:
        """As `ChangeStream.read`."""
        session = self._session
        assert session is not None
        stretch_end = time.monotonic() + _STRETCH_S
        while (current := self._current or self._next(timeout_s)) is not None:
            frames, size = self._current = current
            if isinstance(frames, RowFrames):
                is_full = session.take_rows(frames)
            else:
                # bytes and memoryview are alike to a session.
                get: Callable[[], tuple[int, memoryview]] = partial(next, frames, _NOTHING)
                is_full = session.drain(get) > 0
            if is_full:
                return True
            self._current = None
            with self._tee._changed:
                self._queued_bytes = max(self._queued_bytes - size, 0)
                self._tee._changed.notify_all()
            timeout_s = 0.0
            if time.monotonic() > stretch_end:
                break
        return False

    def _next(self, timeout_s: float) -> tuple[Iterator[tuple[int, bytes]] | RowFrames, int] | None:
        tee = self._tee
        with tee._changed:
            if not self._queue and timeout_s > 0:
                self.is_asking = True
                tee._changed.wait_for(
                    lambda: (
                        self._queue
                        or self._is_interrupted
                        or self.phase == "gone"
                        or tee._ending is not None
                    ),
                    timeout_s,
                )
                self.is_asking = False
            self._is_interrupted = False
            self._require_tee()
            if not self._queue:
                return None
            frames, size = self._queue.popleft()
        if self._relations is not None:
            assert self._session is not None
            self._session.expect_codec(tee._codec)
            self._session.expect_relations(_relations(self._relations, tee._codec))
            self._relations = None
        return frames.again() if isinstance(frames, RowFrames) else iter(frames), size

    def _require_tee(self) -> None:
        if self._tee._ending is not None:
            raise self._tee._ending

    def interrupt(self) -> None:
        with self._tee._changed:
            self._is_interrupted = True
            self._tee._changed.notify_all()

    def confirm(self, lsn: Lsn) -> None:
        with self._tee._changed:
            # Of one that was sent away, what it was still writing is in its own slot.
            if self.phase != "gone":
                self._on_confirm(lsn)

    def request_keepalive(self) -> None:
        self._tee.request_keepalive()

    def close(self) -> None:
        """Read no more; what is still queued is forgotten."""
        with self._tee._changed:
            self._tee._drop(self)
            self._tee._changed.notify_all()


def _relations(frames: Mapping[int, bytes], codec: str | None) -> list[Relation]:
    return [decode_relation(frame[_HEADER + 1 :], codec) for frame in frames.values()]
