"""Which rows the destination has: a condition over columns, as in the WHERE of a query.

    country = 'DE' and (deleted_at is null or amount >= 100)

A condition is true, false or unknown, as in SQL: null compared with anything is unknown, and only
rows for which it is true are kept. It is evaluated on Arrow, for copies and for changes alike.

    condition  := and-terms joined by OR
    and-term   := not-terms joined by AND
    not-term   := [NOT] test | ( condition )
    test       := column compared with a literal by = <> != < <= > >=
                | column [NOT] IN (literal, ...)
                | column [NOT] BETWEEN literal AND literal
                | column [NOT] LIKE 'pattern'
                | column IS [NOT] NULL
                | column, of type boolean
    literal    := 'text' (with '' for a quote) | number | TRUE | FALSE

A column is written as in SQL: folded to lower case, or in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never

_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<text>'(?:[^']|'')*')"
    r'|(?P<quoted>"(?:[^"]|"")+")'
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<sign><=|>=|<>|!=|[=<>(),])"
    r")"
)
_COMPARISONS = ("=", "<>", "<", "<=", ">", ">=")
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
#: How deeply parentheses and NOT may be nested. Each level is read and evaluated by a call, and
#: Python ends that with a RecursionError at some hundred.
_MOST_LEVELS = 100
_WORDS = frozenset(["and", "or", "not", "in", "is", "null", "like", "between", "true", "false"])


class Unreadable(ValueError):
    """The text is not a condition; the message says where, and never quotes more than a word."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A column compared with a literal, by ``=``, ``<>``, ``<``, ``<=``, ``>`` or ``>=``."""

    column: str
    sign: str
    literal: str


@dataclass(frozen=True, slots=True)
class Like:
    column: str
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    column: str


@dataclass(frozen=True, slots=True)
class IsTrue:
    """A column of type boolean by itself."""

    column: str


@dataclass(frozen=True, slots=True)
class Not:
    inner: Condition


@dataclass(frozen=True, slots=True)
class Joined:
    """All of the parts, or any of them."""

    word: str
    parts: tuple[Condition, ...]


Condition: TypeAlias = Compared | Like | IsNull | IsTrue | Not | Joined


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        Unreadable: it isn't one.
    """
    parser = _Parser(text)
    condition = parser.condition()
    parser.require_end()
    return condition


def columns_of(condition: Condition) -> Iterator[str]:
    """The columns that the condition names; some may come several times."""
    match condition:
        case Compared(column) | Like(column) | IsNull(column) | IsTrue(column):
            yield column
        case Not(inner):
            yield from columns_of(inner)
        case Joined(_, parts):
            for part in parts:
                yield from columns_of(part)
        case _:
            assert_never(condition)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise Unreadable(f"can't be read from character {at + 1} on")
            kind, value = found.lastgroup, found[found.lastgroup]
            if kind == "word" and value.lower() in _WORDS:
                kind, value = "keyword", value.lower()
            self._tokens.append((kind, value, found.start(kind if kind != "keyword" else "word")))
            at = found.end()
        self._at = 0
        self._levels = 0

    def condition(self) -> Condition:
        return self._joined("or", lambda: self._joined("and", self._not_term))

    def require_end(self) -> None:
        if self._at < len(self._tokens):
            raise self._unexpected("the end")

    def _joined(self, word: str, part: object) -> Condition:
        assert callable(part)
        parts = [part()]
        while self._take("keyword", word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _not_term(self) -> Condition:
        if self._levels > _MOST_LEVELS:
            raise Unreadable(f"is nested more than {_MOST_LEVELS} levels deep")
        self._levels += 1
        try:
            if self._take("keyword", "not"):
                return Not(self._not_term())
            if self._take("sign", "("):
                inner = self.condition()
                self._require("sign", ")")
                return inner
            return self._test()
        finally:
            self._levels -= 1

    def _test(self) -> Condition:
        literal = self._literal()
        if literal is not None:
            sign = self._comparison()
            return Compared(self._column(), _FLIPPED.get(sign, sign), literal)
        column = self._column()
        if self._take("keyword", "is"):
            is_not = self._take("keyword", "not")
            self._require("keyword", "null")
            return Not(IsNull(column)) if is_not else IsNull(column)
        is_not = self._take("keyword", "not")
        test = self._set_test(column)
        if test is not None:
            return Not(test) if is_not else test
        if is_not:
            raise self._unexpected("IN, BETWEEN or LIKE")
        if self._peek()[0] == "sign" and self._peek()[1] not in (")", ","):
            return Compared(column, self._comparison(), self._require_literal())
        return IsTrue(column)

    def _set_test(self, column: str) -> Condition | None:
        """A test that may have NOT before it; None if there is none of these."""
        if self._take("keyword", "in"):
            self._require("sign", "(")
            literals = [self._require_literal()]
            while self._take("sign", ","):
                literals.append(self._require_literal())
            self._require("sign", ")")
            return Joined("or", tuple(Compared(column, "=", each) for each in literals))
        if self._take("keyword", "between"):
            low = self._require_literal()
            self._require("keyword", "and")
            high = self._require_literal()
            return Joined("and", (Compared(column, ">=", low), Compared(column, "<=", high)))
        if self._take("keyword", "like"):
            kind, value, _ = self._peek()
            if kind != "text":
                raise self._unexpected("a pattern in single quotes")
            self._at += 1
            return Like(column, _unquoted(value))
        return None

    def _column(self) -> str:
        kind, value, _ = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("a column")
        self._at += 1
        return value.lower() if kind == "word" else value[1:-1].replace('""', '"')

    def _comparison(self) -> str:
        kind, value, _ = self._peek()
        sign = "<>" if value == "!=" else value
        if kind != "sign" or sign not in _COMPARISONS:
            raise self._unexpected("a comparison such as =")
        self._at += 1
        return sign

    def _literal(self) -> str | None:
        kind, value, _ = self._peek()
        if kind == "text":
            value = _unquoted(value)
        elif not (kind == "number" or (kind == "keyword" and value in ("true", "false"))):
            return None
        self._at += 1
        return value

    def _require_literal(self) -> str:
        if self._peek()[:2] == ("keyword", "null"):
            raise Unreadable("nothing is equal to null: write IS NULL or IS NOT NULL")
        literal = self._literal()
        if literal is None:
            raise self._unexpected("a literal: text in single quotes, a number, true or false")
        return literal

    def _take(self, kind: str, value: str) -> bool:
        found = self._peek()[:2] == (kind, value)
        self._at += found
        return found

    def _require(self, kind: str, value: str) -> None:
        if not self._take(kind, value):
            raise self._unexpected(value.upper())

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "", -1)

    def _unexpected(self, wanted: str) -> Unreadable:
        kind, _, at = self._peek()
        place = "it ends" if kind == "end" else f"character {at + 1}"
        return Unreadable(f"needs {wanted} where {place}")


def _unquoted(text: str) -> str:
    return text[1:-1].replace("''", "'")
