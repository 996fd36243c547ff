"""A table's name as one text, and back."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

#: One part: quoted, quoted with escapes, or plain up to the next dot.
_PART = re.compile(
    r'"(?P<quoted>(?:[^"]|"")+)"'
    r'|U&"(?P<escaped>(?:[^"]|"")+)"'
    r'|(?P<plain>(?!"|U&")[^.]+)',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:\\|(?P<short>[0-9A-Fa-f]{4})|\+(?P<long>[0-9A-Fa-f]{6}))")
#: What would end a line.
_CONTROL = ("Cc", "Zl", "Zp")


@dataclass(frozen=True, order=True, slots=True)
class TableName:
    """Schema and table. Its text is ``schema.table``, and no two tables have the same text.

    A part is quoted as Postgres quotes identifiers where it holds a dot, a double quote or a
    colon (the separator of state IDs), or has a space at an end; one with control characters is
    written with their code points. Every other part is plain, in whatever case it has.

    >>> str(TableName("public", "orders")), str(TableName("a.b", "c"))
    ('public.orders', '"a.b".c')
    >>> TableName.parse('"a.b".c')
    TableName(schema_name='a.b', table_name='c')

    Source: PostgreSQL documentation, "Identifiers and Key Words".
    """

    schema_name: str
    table_name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read the text of a name. Plain parts are taken as they are, not folded to lower case.

        Raises:
            ValueError: it isn't two parts with a dot in between; the message says how to write it.
        """
        schema = _PART.match(text)
        table = _PART.match(text, schema.end() + 1) if schema and _at(text, schema) == "." else None
        if schema and table and table.end() == len(text):
            return cls(_read(schema), _read(table))
        parts = text.split(".")
        if '"' in text or len(parts) < 3 or not all(parts):
            raise ValueError(
                f"write tables as schema.table: {text}; "
                'a part with a dot or a quote in double quotes, such as "a.b".c'
            )
        readings = (
            str(cls(".".join(parts[:place]), ".".join(parts[place:])))
            for place in range(1, len(parts))
        )
        raise ValueError(f"{text} can be read in several ways: write {' or '.join(readings)}")

    def __str__(self) -> str:
        return f"{_written(self.schema_name)}.{_written(self.table_name)}"


def quote_identifier(name: str) -> str:
    """The name as Postgres and other databases read it in SQL; always in quotes."""
    return '"' + name.replace('"', '""') + '"'


def _at(text: str, part: re.Match[str]) -> str:
    return text[part.end() : part.end() + 1]


def _written(part: str) -> str:
    if any(unicodedata.category(character) in _CONTROL for character in part):
        return "U&" + quote_identifier("".join(map(_escaped, part)))
    if any(character in part for character in '.":') or part != part.strip() or not part:
        return quote_identifier(part)
    return part


def _escaped(character: str) -> str:
    if character == "\\":
        return r"\\"
    return f"\\{ord(character):04X}" if unicodedata.category(character) in _CONTROL else character


def _read(part: re.Match[str]) -> str:
    if (escaped := part["escaped"]) is not None:
        return _ESCAPE.sub(_unescape, escaped.replace('""', '"'))
    return part["plain"] or part["quoted"].replace('""', '"')


def _unescape(match: re.Match[str]) -> str:
    code = match["short"] or match["long"]
    return "\\" if code is None else chr(int(code, 16))
