"""The last lines of a target's stderr, without what must not be shown.

A traceback may hold a row, and a driver's message a password. So what is shown of a line is its
words: texts in quotes stay where they are names that the target was told (streams, columns), and
numbers where they are short; JSON, parentheses of ``(key)=(value)``, and secrets are cut.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from typing import Any, Final

_MOST_LINES: Final = 12
_MOST_CHARACTERS: Final = 300
#: Longer lines are cut here before they are read.
_MOST_BYTES: Final = 8192
_CUT: Final = "…"
_URL_SECRET: Final = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_OBJECT: Final = re.compile(r"[{\[].*[}\]]|[{\[].*$")
_PAIR: Final = re.compile(r"(\([^()]*\)\s*=\s*)\(.*?\)(?=\s|$)")
_QUOTED: Final = re.compile(r"\"([^\"]*)\"|'([^']*)'|`([^`]*)`")
_OPEN_QUOTE: Final = re.compile(r"(?<!\w)[\"'`].*$")
#: Numbers of four digits or more; a port stays.
_NUMBER: Final = re.compile(r"(?<![\w.])(?<!\w:(?=\d{4,5}\b))-?\d[\d.,:eE+T-]{3,}\w*")
_PLACE: Final = re.compile(r'File "(?P<path>[^"]*)", line (?P<line>\d+)(, in (?P<where>\S+))?')
_SECRET_KEY: Final = re.compile(
    r"pass|secret|token|key|credential|auth|dsn|url|uri|private|account|signature|connect",
    re.IGNORECASE,
)


class Tail:
    """Keeps the end of a target's stderr.

    Args:
        secrets: texts that are never shown.
    """

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets = sorted({s for s in secrets if len(s) >= 3}, key=len, reverse=True)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._open = b""
        self._names: set[str] = set()

    def know(self, names: Collection[str]) -> None:
        """Show these names where they stand in quotes."""
        self._names |= set(names)

    def feed(self, data: bytes) -> None:
        *whole, self._open = (self._open + data).split(b"\n")
        self._open = self._open[:_MOST_BYTES]
        for each in whole[-_MOST_LINES:]:
            self._add(each)

    def _add(self, raw: bytes) -> None:
        text = self.shown(raw[:_MOST_BYTES].decode(errors="replace"))
        if text:
            self._lines.append(text)

    def text(self) -> str:
        """The last lines, one after the other; empty where there is none."""
        if self._open:
            self._add(self._open)
            self._open = b""
        return "\n".join(self._lines)

    def shown(self, text: str) -> str:
        """The part of a line that may be shown."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _URL_SECRET.sub("***", "".join(c if c.isprintable() else " " for c in text))
        if (place := _PLACE.search(text)) is not None:
            where = f", in {place['where']}" if place["where"] else ""
            file = place["path"].rpartition("/site-packages/")[2].rpartition("/lib/")[2]
            return f"  {file}, line {place['line']}{where}"
        text = _OBJECT.sub(_CUT, text)
        text = _PAIR.sub(rf"\1({_CUT})", text)
        kept: list[str] = []

        def keep(match: re.Match[str]) -> str:
            inner = next((g for g in match.groups() if g is not None), "")
            if inner not in self._names:
                return f'"{_CUT}"'
            kept.append(match[0])
            return f"\0{len(kept) - 1}\0"

        text = _QUOTED.sub(keep, text)
        text = text.replace(f'"{_CUT}"', "\1")
        text = _OPEN_QUOTE.sub(_CUT, text)
        text = _NUMBER.sub(_CUT, text).replace("\1", f'"{_CUT}"')
        text = re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)
        text = text.rstrip()
        return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + _CUT


def secrets_in(settings: Any, key: str = "") -> set[str]:
    """Texts in a target's settings that are secrets, by the name of their setting."""
    match settings:
        case dict():
            return {
                s for name, value in settings.items() for s in secrets_in(value, f"{key}.{name}")
            }
        case list():
            return {s for value in settings for s in secrets_in(value, key)}
        case str() if _SECRET_KEY.search(key):
            return {settings}
    return set()
