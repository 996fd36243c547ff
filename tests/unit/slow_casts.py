"""Values without parts, read the obvious way: one text after the other, with Python's own means.

What the casts of the product do at once for a whole column must be what these do for each text.
Numbers stand for what Arrow holds as numbers: days, microseconds, bits.
"""

from __future__ import annotations

import struct
from datetime import date
from decimal import Decimal
from fractions import Fraction

#: The numbers that stand for infinity; DuckDB's, which are the largest of their types.
LAST_DAY, LAST_MICROSECOND = 2**31 - 1, 2**63 - 1


class Odd(Exception):
    """The type can't hold the value."""


def boolean(text: str) -> bool:
    return {"t": True, "f": False}[text]


def float4(text: str) -> bytes:
    """The bits: NaN equals itself there, and -0 differs from 0."""
    return struct.pack("<f", float(text))


def float8(text: str) -> bytes:
    return struct.pack("<d", float(text))


def decimal(text: str) -> Decimal:
    """Postgres prints all digits of the declared scale."""
    if text == "NaN":
        raise Odd
    return Decimal(text)


def bytea(text: str) -> bytes:
    return bytes(int(text[at : at + 2], 16) for at in range(2, len(text), 2))


def day(text: str) -> int:
    """Days since 1970-01-01."""
    if text.endswith("infinity"):
        return -LAST_DAY if text.startswith("-") else LAST_DAY
    year, month, number = map(int, text.removesuffix(" BC").split("-"))
    if text.endswith(" BC"):
        year = 1 - year
    # The calendar is the same again after 400 years, which are 146,097 days.
    cycles, year = divmod(year, 400)
    since = date(year + 400, month, number) - date(1970, 1, 1)
    return since.days + (cycles - 1) * 146_097


def clock(text: str) -> int:
    """Microseconds since midnight; 24:00:00 is the end of the day."""
    hours, minutes, seconds = text.split(":")
    return int(
        (int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) * 1_000_000,
    )


def moment(text: str) -> int:
    """Microseconds since 1970-01-01."""
    if text.endswith("infinity"):
        return -LAST_MICROSECOND if text.startswith("-") else LAST_MICROSECOND
    before_christ = " BC" if text.endswith(" BC") else ""
    date_, time = text.removesuffix(" BC").split(" ")
    found = day(date_ + before_christ) * 86_400_000_000 + clock(time.removesuffix("+00"))
    if abs(found) >= LAST_MICROSECOND:
        raise Odd
    return found


def stored(value: bytes, codec: str, *, is_json: bool = False) -> tuple[str, str | None]:
    r"""The text of bytes in an encoding; and, if that has no character for some of them, the bytes.

    Such a byte becomes ``\x81`` in the text.
    """
    try:
        return value.decode(codec), None
    except UnicodeDecodeError:
        pass
    text, rest = "", value
    while rest:
        try:
            return text + rest.decode(codec), _spelled(value)
        except UnicodeDecodeError as error:
            escape = "\\\\x" if is_json else "\\x"
            text += rest[: error.start].decode(codec)
            text += "".join(f"{escape}{byte:02x}" for byte in rest[error.start : error.end])
            rest = rest[error.end :]
    return text, _spelled(value)


def _spelled(value: bytes) -> str:
    r"""ASCII as it is, but for the backslash; all else as ``\xFF``."""
    return "".join(
        chr(byte) if 32 <= byte <= 126 and byte != 92 else f"\\x{byte:02X}" for byte in value
    )


def as_adbc_adds(number: int, epoch: int, bits: int) -> int:
    """What the ADBC driver makes of Postgres' count from 2000: the sum goes round at its end."""
    span = 1 << bits
    total = (number + epoch) % span
    return total - span if total >= span // 2 else total
