"""What a configuration has as text: sizes and decimals, and mistakes in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

#: From the outermost section to a key.
Place: TypeAlias = tuple[str, ...]

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{infix}b": base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, letter in enumerate("kmgt", start=1)
}
#: The largest number of bytes that Postgres and the destinations can express.
_LARGEST = 2**63 - 1
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)

_DECIMAL = re.compile(r"decimal\((\d{1,3}),(\d{1,3})\)")
#: As wide as the decimals of most destinations.
_MAX_DIGITS = 38

#: Plain words for what pydantic says in terms of Python or of regular expressions, by the type of
#: its error. Names in braces are from its context.
_MESSAGES = {
    "extra_forbidden": "unknown key",
    "invalid_key": "a key must be a text: put it in quotes",
    "missing": "is required",
    "model_type": "must hold a mapping, such as `key: value`",
    "dict_type": "must hold a mapping, such as `key: value`",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "has too many digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of: {expected}",
    "path_type": "must be a path",
}


def parse_numeric(choice: str) -> str:
    """The choice in one spelling: ``text``, ``double``, or for example ``decimal(20,4)``.

    Raises:
        ValueError: it is none of these, or a decimal that no destination has.
    """
    plain = choice.replace(" ", "").lower()
    match = _DECIMAL.fullmatch(plain)
    if match is None:
        if plain not in ("text", "double"):
            raise ValueError("must be text, double, or a decimal such as decimal(20,4)")
        return plain
    precision, scale = int(match[1]), int(match[2])
    if not (1 <= precision <= _MAX_DIGITS and scale <= precision):
        raise ValueError(f"must have 1 to {_MAX_DIGITS} digits, and no more after the point")
    return f"decimal({precision},{scale})"


def parse_size(value: Any) -> Any:
    """Bytes as a number, from a number or a text such as ``8MB`` (10^6) or ``8MiB`` (2^20).

    A value that is neither stays as it is, and the next validator refuses it.

    Raises:
        ValueError: a text in another unit, or too large.
    """
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = _SIZE.fullmatch(value.strip())
    unit = None if match is None else _UNITS.get(match["unit"].lower())
    if match is None or unit is None:
        raise ValueError("must be a number of bytes, or one with KB, MB, GB, TB, KiB, MiB, ...")
    size = round(Decimal(match["number"]) * unit)
    if size > _LARGEST:
        raise ValueError("must be less than 8388608 TiB")
    return size


def with_line(place: Place, mistake: str, lines: Mapping[Place, int]) -> str:
    """The mistake with its line in front; a missing key has the line of its section."""
    for end in range(len(place), 0, -1):
        if (line := lines.get(place[:end])) is not None:
            return f"line {line}: {mistake}"
    return mistake


def describe(kind: str, message: str, facts: Mapping[str, Any]) -> str:
    """What pydantic found, in plain words and without the value."""
    known = _MESSAGES.get(kind)
    if known is None:
        return message.removeprefix("Value error, ")
    return known.format_map({name: _plain(fact) for name, fact in facts.items()})


def suggest(key: str, known: Sequence[str], elsewhere: Sequence[Place]) -> str:
    """A key that may have been meant, as the end of a sentence; empty if there is none.

    Args:
        known: the keys of the section.
        elsewhere: the keys of all sections, each after its section.
    """
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    places = [".".join(place) for place in elsewhere if place[-1] == key]
    if places:
        return f"; did you mean {' or '.join(places)}?"
    return ""


def _plain(fact: Any) -> str:
    if isinstance(fact, float) and fact.is_integer():
        return str(int(fact))
    return str(fact)
