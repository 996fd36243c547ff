"""The receiving end of a replication stream: frames in, batches out.

Row messages are most of a stream. They are put aside as they are, in one buffer, and are decoded
together by `RawBatch.decode`, perhaps on another thread. Control messages are read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.protocol.alterations import ALTERATION_PREFIX, decode_alterations
from etl_dagster.protocol.batch import BEGIN, COMMIT, RawBatch
from etl_dagster.protocol.builder import BatchBuilder
from etl_dagster.protocol.frames import (
    KEEPALIVE_TAG,
    XLOG_DATA_HEADER,
    XLOG_DATA_TAG,
    decode_keepalive,
)
from etl_dagster.protocol.pgoutput import (
    Relation,
    StreamAbort,
    decode_message,
    decode_origin,
    decode_relation,
    decode_stream_abort,
    decode_truncate,
    decode_type,
)
from etl_dagster.protocol.receiver import RELATION, STREAM_TAGS, STREAMED
from etl_dagster.protocol.row_frames import RowFrames

#: Bytes of a frame before the message of the output plugin.
_HEADER: Final = XLOG_DATA_HEADER.size
_ROW_TAGS: Final = frozenset(b"IUD")


class ReplicationSession:
    """What is known of one replication connection, and the batch that is being filled.

    Args:
        max_bytes: a batch is full from this many bytes of frames on. The frame that gets it there
            is still taken, so a batch is larger by one row at most.
        max_rows: a batch is full with this many row messages.
    """

    def __init__(self, *, max_bytes: int = 8 * 1024**2, max_rows: int = 250_000) -> None:
        if max_bytes < 1 or max_rows < 1:
            raise ValueError("a batch holds at least one byte and one row")
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        #: By OID, as last sent on this connection.
        self._relations: dict[int, Relation] = {}
        self._open = BatchBuilder({}, None)
        self._commit_end = 0
        self._last_keepalive_end = LSN_ZERO
        # Numbers, since an `Lsn` for each transaction takes longer than the rest of a Commit.
        # Other threads read them, too.
        self._wal_end = 0
        self._reply_requested = False
        self._codec: str | None = None
        self._expects_streamed = False
        self._relation_frames: dict[int, bytes] = {}
        #: The frame at which `drain` returned `STREAMED`.
        self.not_taken = b""

    def expect_codec(self, codec: str | None) -> None:
        """Say how the server sends text, as Python calls it; before the first frame.

        None, the default, is UTF-8.
        """
        self._codec = codec
        self._open = BatchBuilder({}, None, codec)

    def expect_streamed(self) -> None:
        """Have `drain` stop at messages about transactions in progress; before the first frame."""
        self._expects_streamed = True

    def relation_frame(self, relation_id: int) -> bytes | None:
        """The frame that last described a table, another object each time; of `expect_streamed`."""
        return self._relation_frames.get(relation_id)

    def expect_relations(self, relations: Iterable[Relation]) -> None:
        """Say what the server described earlier on this connection; before the first frame.

        It describes a table once, so a decoder that takes over in the middle must be told.
        """
        self._relations = {relation.id: relation for relation in relations}
        self._open = BatchBuilder(dict(self._relations), None, self._codec)

    # -- taking frames -------------------------------------------------------------------------

    def drain(self, get: Callable[[], tuple[int, memoryview]]) -> int:
        """Take frames until there are none, or the open batch is full.

        Args:
            get: `pgconn.get_copy_data(1)`: a length and a frame. The length is 0 when nothing has
                arrived, and -1 when the stream has ended. A frame is not kept.

        Returns:
            0 or -1, as `get` did; 1 when the batch is full, and is to be taken first; or
            `STREAMED` where `not_taken` is about a transaction in progress.

        Raises:
            DecodeError: the bytes are not pgoutput.
        """
        # About a third of a microsecond a row, and half of the CPU time of a whole pipeline.
        batch = self._open
        buffer, add_length = batch.buffer, batch.lengths.append
        row_tags, max_bytes = _ROW_TAGS, self._max_bytes
        room = self._max_rows - batch.row_message_count
        known = len(batch.lengths)
        size = batch.size
        try:
            while room > 0 and size < max_bytes:
                length, frame = get()
                if length <= 0:
                    return length
                size += length
                # A keepalive is shorter; that the first byte is an XLogData's is checked later.
                tag = frame[_HEADER] if length > _HEADER else 0
                if tag in row_tags:
                    buffer += frame
                    add_length(length)
                    room -= 1
                elif tag == COMMIT:
                    self._commit_end = batch.commit(frame)
                elif tag == BEGIN:
                    batch.begin(frame)
                elif self._expects_streamed and tag in STREAM_TAGS:
                    size -= length
                    self.not_taken = bytes(frame)
                    return STREAMED
                else:
                    self._control(frame)
            return 1
        finally:
            batch.size = size
            if len(batch.lengths) > known:
                self._note_wal_end()

    def take_rows(self, rows: RowFrames) -> bool:
        """Take row messages of the open transaction, as `drain` would one by one.

        Returns whether the open batch is full; what is left of them is for the next one.
        """
        batch = self._open
        room = self._max_rows - batch.row_message_count
        frames, lengths = rows.take(self._max_bytes - batch.size, room)
        batch.buffer += frames
        batch.lengths += lengths
        batch.size += len(frames)
        self._note_wal_end()
        return batch.size >= self._max_bytes or len(lengths) >= room

    def feed(self, frame: bytes | memoryview) -> None:
        """Take one frame; it may fill the batch past its bounds.

        Raises:
            DecodeError: it is not a frame, or not pgoutput.
        """
        batch = self._open
        batch.size += len(frame)
        tag = frame[_HEADER] if len(frame) > _HEADER else 0
        if tag in _ROW_TAGS:
            batch.buffer += frame
            batch.lengths.append(len(frame))
        elif tag == COMMIT:
            self._commit_end = batch.commit(frame)
        elif tag == BEGIN:
            batch.begin(frame)
        else:
            self._control(frame)
            return
        self._note_wal_end()

    def _note_wal_end(self) -> None:
        """Read the newest row's header; once for each drain, since for each row is too much."""
        lengths = self._open.lengths
        if lengths:
            at = len(self._open.buffer) - lengths[-1]
            wal_end = XLOG_DATA_HEADER.unpack_from(self._open.buffer, at)[2]
            self._wal_end = max(self._wal_end, wal_end)

    # -- control messages ------------------------------------------------------------------------

    def _control(self, frame: bytes | memoryview) -> None:
        if not len(frame):
            raise DecodeError("the frame is empty", offset=0)
        tag = frame[0]
        if tag == KEEPALIVE_TAG:
            keepalive = decode_keepalive(frame)
            self._last_keepalive_end = max(self._last_keepalive_end, keepalive.wal_end)
            self._wal_end = max(self._wal_end, keepalive.wal_end.offset)
            self._reply_requested |= keepalive.reply_requested
            return
        if tag != XLOG_DATA_TAG:
            raise DecodeError(f"a frame with the unknown tag {chr(tag)!r}", offset=0)
        if len(frame) <= _HEADER:
            raise DecodeError("an XLogData frame without a message", offset=len(frame))
        self._wal_end = max(self._wal_end, XLOG_DATA_HEADER.unpack_from(frame)[2])
        if self._expects_streamed and frame[_HEADER] == RELATION:
            relation_id = int.from_bytes(frame[_HEADER + 1 : _HEADER + 5], "big")
            self._relation_frames[relation_id] = bytes(frame)
        self._message(frame[_HEADER], frame[_HEADER + 1 :])

    def _message(self, tag: int, body: bytes | memoryview) -> None:
        match chr(tag):
            case "R":
                relation = decode_relation(body, self._codec)
                if self._relations.get(relation.id) != relation:
                    self._relations[relation.id] = relation
                    self._open.relation(relation)
            case "T":
                self._open.truncate(decode_truncate(body))
            case "M":
                message = decode_message(body)
                if message.transactional and message.prefix == ALTERATION_PREFIX:
                    for alteration in decode_alterations(message.content):
                        self._open.alteration(alteration)
            # The rest only has to be well-formed.
            case "O":
                decode_origin(body)
            case "Y":
                decode_type(body)
            case "A":
                self._ignore_abort(decode_stream_abort(body))
            case unknown:
                raise DecodeError(f"a message with the unknown tag {unknown!r}", offset=0)

    def _ignore_abort(self, abort: StreamAbort) -> None:
        """Where streaming is off, nothing of it was taken, unless it is the one being received."""
        if self._open.transaction is not None:
            raise DecodeError(
                f"a Stream Abort message for transaction {abort.xid} inside of a transaction",
                offset=0,
            )

    # -- the open batch --------------------------------------------------------------------------

    def take_batch(self) -> RawBatch:
        """Close the open batch and begin the next one, which continues where this one ends."""
        opened = self._open
        is_full = opened.size >= self._max_bytes or opened.row_message_count >= self._max_rows
        batch = opened.build(is_full=is_full)
        self._open = BatchBuilder(dict(self._relations), opened.transaction_at_end, self._codec)
        return batch

    @property
    def is_empty(self) -> bool:
        """Whether the open batch holds nothing at all, not even a mark."""
        return self._open.is_empty

    @property
    def row_count(self) -> int:
        """Row messages, truncates and alterations in the open batch: what a destination would have
        to do."""
        return self._open.row_count

    @property
    def first_commit_time_us(self) -> int | None:
        """Commit time of the first transaction with rows in the open batch, None without rows.

        Microseconds since 1970-01-01 UTC, by the source's clock.
        """
        return self._open.first_commit_time_us

    @property
    def open_commit_lsn(self) -> Lsn | None:
        """Where the commit record of the transaction begins that is being received."""
        transaction = self._open.transaction
        return None if transaction is None else Lsn(transaction.commit_lsn)

    @property
    def last_commit_end(self) -> Lsn:
        """Where the commit record of the last complete transaction ends; ``0/0`` before one."""
        return Lsn(self._commit_end)

    @property
    def last_keepalive_end(self) -> Lsn:
        """Everything before was sent to us, as far as it is ours; ``0/0`` before a keepalive."""
        return self._last_keepalive_end

    @property
    def last_wal_end(self) -> Lsn:
        """How far the server's WAL reached when it sent the last frame."""
        return Lsn(self._wal_end)

    def take_reply_request(self) -> bool:
        """Whether the server asked for a status update since the last call."""
        requested, self._reply_requested = self._reply_requested, False
        return requested
