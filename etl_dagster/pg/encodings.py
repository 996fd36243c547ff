"""Databases that don't keep their text as UTF-8.

The server can convert to UTF-8, but stops at the first byte that stands for nothing there: the
stream of all tables would end for one value. So where this side can convert just as well, it reads
the bytes as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg

#: Python's codecs for the encodings with one byte for a character. They agree with Postgres' own
#: conversions for each of the 256 bytes, those that stand for nothing among them; for encodings
#: with several bytes they don't. SQL_ASCII keeps any byte; what is text there is UTF-8 nowadays.
_CODECS: Final = {
    "SQL_ASCII": "utf-8",
    "LATIN1": "iso8859-1",
    "LATIN2": "iso8859-2",
    "LATIN3": "iso8859-3",
    "LATIN4": "iso8859-4",
    "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13",
    "LATIN8": "iso8859-14",
    "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16",
    "ISO_8859_5": "iso8859-5",
    "ISO_8859_6": "iso8859-6",
    "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8",
    "WIN1250": "cp1250",
    "WIN1251": "cp1251",
    "WIN1252": "cp1252",
    "WIN1253": "cp1253",
    "WIN1254": "cp1254",
    "WIN1255": "cp1255",
    "WIN1256": "cp1256",
    "WIN1257": "cp1257",
    "WIN1258": "cp1258",
    "WIN866": "cp866",
    "WIN874": "cp874",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
}


@dataclass(frozen=True, slots=True)
class StoredEncoding:
    """How a database keeps its text, where this side converts it."""

    #: As Postgres calls it.
    name: str
    #: As Python does.
    codec: str


def stored_encoding(connection: psycopg.Connection[Any]) -> StoredEncoding | None:
    """The database's encoding; None where the server sends UTF-8 itself."""
    name = connection.info.parameter_status("server_encoding") or ""
    codec = _CODECS.get(name)
    return None if codec is None else StoredEncoding(name, codec)


def decode(value: bytes, codec: str) -> str:
    r"""The text; a byte that stands for nothing becomes four characters such as ``\x81``."""
    return value.decode(codec, errors="backslashreplace")
