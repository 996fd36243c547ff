"""A position in Postgres' write-ahead log."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"\A[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}\Z")


@dataclass(frozen=True, order=True, slots=True)
class Lsn:
    """A position in the write-ahead log, in bytes from its beginning; larger is later.

    >>> Lsn.parse("0/FFFFFFFF") < Lsn.parse("1/0")
    True
    >>> str(Lsn.parse("16/b374d848"))
    '16/B374D848'

    Source: PostgreSQL documentation, "pg_lsn Type".
    """

    offset: int

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read Postgres' own notation, two hexadecimal halves of 32 bits.

        Raises:
            ValueError: the text is not an LSN.
        """
        if not _TEXT.match(text):
            raise ValueError(f"{text!r} is not an LSN; one looks like 16/B374D848")
        high, _, low = text.partition("/")
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self.offset >> 32:X}/{self.offset & 0xFFFFFFFF:X}"


#: Before every record; Postgres' InvalidXLogRecPtr (xlogdefs.h).
LSN_ZERO = Lsn(0)

#: At or after every record.
LSN_MAX = Lsn(2**64 - 1)
