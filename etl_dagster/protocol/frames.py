"""What travels inside of CopyData on a replication connection, in both directions.

Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn

#: Tag, start of the data in the WAL, end of the WAL at the server, server clock.
XLOG_DATA_HEADER: Final = struct.Struct("!cQQq")
#: Tag, end of the WAL at the server, server clock, whether an answer is wanted.
KEEPALIVE: Final = struct.Struct("!cQqB")
#: Tag; written, flushed and applied LSN; client clock; whether an answer is wanted.
_STANDBY_STATUS: Final = struct.Struct("!cQQQqB")

XLOG_DATA_TAG: Final = ord("w")
KEEPALIVE_TAG: Final = ord("k")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server has sent everything that it has for us up to `wal_end`; wire tag ``k``."""

    wal_end: Lsn
    sent_us: int
    reply_requested: bool


def decode_keepalive(frame: bytes | memoryview) -> Keepalive:
    """Decode a primary keepalive frame.

    Raises:
        DecodeError: another length, or another frame.
    """
    if len(frame) != KEEPALIVE.size:
        raise DecodeError(
            f"a keepalive frame is {KEEPALIVE.size} bytes, the server sent {len(frame)}",
            offset=min(len(frame), KEEPALIVE.size),
        )
    tag, wal_end, sent_us, reply_requested = KEEPALIVE.unpack(frame)
    if tag != b"k":
        raise DecodeError(f"a keepalive frame begins with 'k', not {tag!r}", offset=0)
    return Keepalive(Lsn(wal_end), sent_us, bool(reply_requested))


def encode_standby_status_update(
    *, written: Lsn, flushed: Lsn, applied: Lsn, now_us: int, reply_requested: bool
) -> bytes:
    """Encode a standby status update.

    Args:
        flushed: the slot keeps no WAL before; after a restart it is streamed from here.
        now_us: the client's clock, microseconds since 2000-01-01 UTC.
        reply_requested: have the server answer with a keepalive at once.
    """
    return _STANDBY_STATUS.pack(
        b"r", written.offset, flushed.offset, applied.offset, now_us, reply_requested
    )
