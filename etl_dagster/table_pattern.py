"""Patterns that name tables or columns, and which of several goes first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from etl_dagster.table_name import TableName

_WILD = re.compile(r"[*?]")
_QUOTED = ('"', 'U&"')


@dataclass(frozen=True, slots=True)
class Pattern:
    """Names that are like this one: ``*`` is any text, ``?`` any character, letters have a case.

    >>> Pattern.of("*_email").matches("work_email")
    True
    """

    expression: re.Pattern[str]
    #: How many characters it has that aren't wild.
    literal_count: int
    is_exact: bool

    @classmethod
    def of(cls, text: str, *, is_literal: bool = False) -> Pattern:
        """Read a pattern; one that is literal has nothing wild."""
        return _read(text, is_literal)

    def matches(self, name: str) -> bool:
        return self.expression.fullmatch(name) is not None

    @property
    def rank(self) -> tuple[bool, int]:
        """Larger the more exactly it says which names are meant."""
        return self.is_exact, self.literal_count


@lru_cache(maxsize=4096)
def _read(text: str, is_literal: bool) -> Pattern:
    wild = {"*": ".*", "?": "."}
    if is_literal or not _WILD.search(text):
        return Pattern(re.compile(re.escape(text), re.DOTALL), len(text), True)
    expression = "".join(wild.get(character) or re.escape(character) for character in text)
    return Pattern(re.compile(expression, re.DOTALL), len(_WILD.sub("", text)), False)


@dataclass(frozen=True, slots=True)
class TablePattern:
    """Tables of which schema and name are like this.

    Its text is that of a `TableName`. A part in double quotes is taken as it is.

    >>> TablePattern.parse("sales.*").matches(TableName("sales", "orders"))
    True
    >>> TablePattern.parse('sales."*"').matches(TableName("sales", "orders"))
    False
    """

    #: In one spelling, where nothing in it is wild.
    text: str
    schema_name: Pattern
    table_name: Pattern

    @classmethod
    def parse(cls, text: str) -> TablePattern:
        """Read a pattern.

        Raises:
            ValueError: it isn't two parts with a dot in between; the message says how to write it.
        """
        name = TableName.parse(text)
        schema = Pattern.of(name.schema_name, is_literal=text.startswith(_QUOTED))
        table = Pattern.of(name.table_name, is_literal=text.endswith('"'))
        is_exact = schema.is_exact and table.is_exact
        return cls(_exactly(name) if is_exact else text, schema, table)

    def matches(self, name: TableName) -> bool:
        return self.schema_name.matches(name.schema_name) and self.table_name.matches(
            name.table_name
        )

    @property
    def is_exact(self) -> bool:
        """Whether it is the name of one table."""
        return self.schema_name.is_exact and self.table_name.is_exact

    @property
    def rank(self) -> tuple[bool, int]:
        """Larger the more exactly it says which tables are meant."""
        return self.is_exact, self.schema_name.literal_count + self.table_name.literal_count


def _exactly(name: TableName) -> str:
    """The name as a pattern for this one table: what would be wild is in quotes."""
    parts = (str(TableName("a", part))[2:] for part in (name.schema_name, name.table_name))
    return ".".join(
        f'"{part}"' if _WILD.search(part) and not part.endswith('"') else part for part in parts
    )
