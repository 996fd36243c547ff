"""The control messages of pgoutput, as frozen facts. Row messages are decoded in `rows`.

Every `decode_` function takes a message without its tag byte. Offsets in errors count from the tag.

Source: PostgreSQL documentation, "Logical Replication Message Formats", protocol versions 1 to 4
without two-phase commits and parallel streaming.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, cast

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import ReplicaIdentity

_BEGIN: Final = struct.Struct("!QqI")
_COMMIT: Final = struct.Struct("!BQQq")
_LSN: Final = struct.Struct("!Q")
_OID: Final = struct.Struct("!I")
_XIDS: Final = struct.Struct("!II")
_STREAM_START: Final = struct.Struct("!IB")
_STREAM_COMMIT: Final = struct.Struct("!IBQQq")
_COUNT: Final = struct.Struct("!H")
_MODIFIER: Final = struct.Struct("!i")


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction begins; wire tag ``B``."""

    #: Where its commit record begins.
    final_lsn: Lsn
    #: Microseconds since 2000-01-01 UTC, as sent.
    commit_time_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction ends; wire tag ``C``."""

    commit_lsn: Lsn
    #: Where its commit record ends: confirming this, the transaction is never sent again.
    end_lsn: Lsn
    commit_time_us: int


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column in a Relation message."""

    name: str
    type_oid: int
    type_modifier: int
    #: Part of the replica identity.
    is_identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """What the rows of a table look like from here on; wire tag ``R``.

    Sent before the table's first change on a connection, and again after it was altered.
    """

    id: int
    schema_name: str
    table_name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables are emptied together; wire tag ``T``."""

    relation_ids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """A message written with pg_logical_emit_message(); wire tag ``M``."""

    lsn: Lsn
    prefix: str
    content: bytes
    transactional: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction comes from another server; wire tag ``O``."""

    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class Type:
    """A data type that isn't built in; wire tag ``Y``."""

    oid: int
    schema_name: str
    name: str


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A segment of a transaction in progress follows, up to a Stream Stop; wire tag ``S``."""

    xid: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """A transaction that was sent in segments has committed; wire tag ``c``."""

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """A transaction, or a part of one, was rolled back after segments were sent; wire tag ``A``.

    PostgreSQL 18.6 also sends it of transactions of which it has sent nothing, and where streaming
    is off: after a rollback of a transaction that was larger than logical_decoding_work_mem and had
    a released savepoint.
    """

    xid: int
    #: The subtransaction that was rolled back; the same as `xid` for the whole.
    subxid: int


class _Reader:
    """Reads a message from front to back; never past its end."""

    def __init__(self, kind: str, body: bytes | memoryview, codec: str | None = None) -> None:
        self._kind = kind
        self._codec = codec
        self._body = bytes(body)
        self._place = 0

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        if self._place + form.size > len(self._body):
            raise self.error("ends too early", len(self._body))
        values = form.unpack_from(self._body, self._place)
        self._place += form.size
        return values

    def number(self, form: struct.Struct) -> int:
        return self.take(form)[0]

    def byte(self) -> int:
        if self._place >= len(self._body):
            raise self.error("ends too early", len(self._body))
        self._place += 1
        return self._body[self._place - 1]

    def text(self) -> str:
        end = self._body.find(b"\0", self._place)
        if end < 0:
            raise self.error("has a string without an end", self._place)
        # A name with invalid bytes must not end the stream of all tables.
        text = self._body[self._place : end].decode(
            self._codec or "utf-8", errors="backslashreplace"
        )
        self._place = end + 1
        return text

    def rest(self, length: int) -> bytes:
        if self._place + length > len(self._body):
            raise self.error("ends too early", len(self._body))
        self._place += length
        return self._body[self._place - length : self._place]

    def finish(self) -> None:
        if self._place != len(self._body):
            raise self.error("continues after its end", self._place)

    def error(self, what: str, place: int | None = None) -> DecodeError:
        at = self._place if place is None else place
        return DecodeError(f"the {self._kind} message {what}", offset=1 + at)


def decode_begin(body: bytes | memoryview) -> Begin:
    """Decode a Begin message.

    Raises:
        DecodeError: the body has another length.
    """
    if len(body) != _BEGIN.size:
        raise _wrong_length("Begin", _BEGIN.size, len(body))
    final_lsn, commit_time_us, xid = _BEGIN.unpack(body)
    return Begin(Lsn(final_lsn), commit_time_us, xid)


def decode_commit(body: bytes | memoryview) -> Commit:
    """Decode a Commit message.

    Raises:
        DecodeError: the body has another length.
    """
    if len(body) != _COMMIT.size:
        raise _wrong_length("Commit", _COMMIT.size, len(body))
    _flags, commit_lsn, end_lsn, commit_time_us = _COMMIT.unpack(body)
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), commit_time_us)


def _wrong_length(kind: str, expected: int, got: int) -> DecodeError:
    return DecodeError(
        f"a {kind} message is {expected} bytes, the server sent {got}",
        offset=1 + min(expected, got),
    )


def decode_relation(body: bytes | memoryview, codec: str | None = None) -> Relation:
    """Decode a Relation message.

    Args:
        codec: how its names are encoded, as Python calls it; None: UTF-8.

    Raises:
        DecodeError: it ends too early or too late, or has an unknown replica identity.
    """
    reader = _Reader("Relation", body, codec)
    relation_id = reader.number(_OID)
    # Postgres sends an empty name for pg_catalog.
    schema_name = reader.text() or "pg_catalog"
    table_name = reader.text()
    identity = chr(reader.byte())
    if identity not in ("d", "i", "f", "n"):
        raise reader.error(f"has the unknown replica identity {identity!r}")
    columns = tuple(_relation_column(reader) for _ in range(reader.number(_COUNT)))
    reader.finish()
    return Relation(relation_id, schema_name, table_name, cast(ReplicaIdentity, identity), columns)


def _relation_column(reader: _Reader) -> RelationColumn:
    is_identity = bool(reader.byte() & 1)
    name = reader.text()
    return RelationColumn(name, reader.number(_OID), reader.number(_MODIFIER), is_identity)


def decode_truncate(body: bytes | memoryview) -> Truncate:
    """Decode a Truncate message.

    Raises:
        DecodeError: its length doesn't fit its number of tables.
    """
    reader = _Reader("Truncate", body)
    count = reader.number(_OID)
    options = reader.byte()
    if len(body) != 5 + 4 * count:
        raise reader.error(f"has {len(body)} bytes for {count} tables")
    relation_ids = tuple(reader.number(_OID) for _ in range(count))
    return Truncate(relation_ids, cascade=bool(options & 1), restart_identity=bool(options & 2))


def decode_message(body: bytes | memoryview) -> LogicalMessage:
    """Decode a logical decoding message.

    Raises:
        DecodeError: it ends too early or too late.
    """
    reader = _Reader("Message", body)
    flags = reader.byte()
    lsn = Lsn(reader.number(_LSN))
    prefix = reader.text()
    content = reader.rest(reader.number(_OID))
    reader.finish()
    return LogicalMessage(lsn, prefix, content, transactional=bool(flags & 1))


def decode_origin(body: bytes | memoryview) -> Origin:
    """Decode an Origin message.

    Raises:
        DecodeError: it ends too early or too late.
    """
    reader = _Reader("Origin", body)
    lsn = Lsn(reader.number(_LSN))
    name = reader.text()
    reader.finish()
    return Origin(lsn, name)


def decode_stream_start(body: bytes | memoryview) -> StreamStart:
    """Decode a Stream Start message.

    Raises:
        DecodeError: the body has another length.
    """
    if len(body) != _STREAM_START.size:
        raise _wrong_length("Stream Start", _STREAM_START.size, len(body))
    xid, is_first = _STREAM_START.unpack(body)
    return StreamStart(xid, bool(is_first))


def decode_stream_commit(body: bytes | memoryview) -> StreamCommit:
    """Decode a Stream Commit message.

    Raises:
        DecodeError: the body has another length.
    """
    if len(body) != _STREAM_COMMIT.size:
        raise _wrong_length("Stream Commit", _STREAM_COMMIT.size, len(body))
    xid, _flags, commit_lsn, end_lsn, commit_time_us = _STREAM_COMMIT.unpack(body)
    return StreamCommit(xid, Lsn(commit_lsn), Lsn(end_lsn), commit_time_us)


def decode_stream_abort(body: bytes | memoryview) -> StreamAbort:
    """Decode a Stream Abort message.

    Raises:
        DecodeError: the body has another length.
    """
    if len(body) != _XIDS.size:
        raise _wrong_length("Stream Abort", _XIDS.size, len(body))
    return StreamAbort(*_XIDS.unpack(body))


def decode_type(body: bytes | memoryview) -> Type:
    """Decode a Type message.

    Raises:
        DecodeError: it ends too early or too late.
    """
    reader = _Reader("Type", body)
    oid = reader.number(_OID)
    schema_name = reader.text() or "pg_catalog"
    name = reader.text()
    reader.finish()
    return Type(oid, schema_name, name)
