"""Intervals, read and printed the obvious way."""

from __future__ import annotations

import re

Interval = tuple[int, int, int]

_PART = re.compile(r"([+-]?\d+) (year|mon|month|day)s?")
_CLOCK = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?$")


def read(text: str) -> Interval:
    """Months, days and microseconds of what Postgres or DuckDB prints."""
    counts = {"year": 0, "mon": 0, "day": 0}
    for number, unit in _PART.findall(text):
        counts["mon" if unit == "month" else unit] += int(number)
    micros = 0
    if (clock := _CLOCK.search(text)) is not None:
        sign, hours, minutes, seconds, fraction = clock.groups()
        micros = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
        micros = micros * 1_000_000 + int((fraction or "").ljust(6, "0"))
        micros = -micros if sign == "-" else micros
    return counts["year"] * 12 + counts["mon"], counts["day"], micros


def print_as_postgres(value: Interval) -> str:
    """Source: EncodeInterval() in Postgres' datetime.c, style `postgres`."""
    months, days, micros = value
    sign = -1 if months < 0 else 1
    years, months = sign * (abs(months) // 12), sign * (abs(months) % 12)
    words: list[str] = []
    is_before = False
    for number, unit in ((years, "year"), (months, "mon"), (days, "day")):
        if number:
            plus = "+" if is_before and number > 0 else ""
            words.append(f"{plus}{number} {unit}{'' if number == 1 else 's'}")
            is_before = number < 0
    if micros or not words:
        seconds, fraction = divmod(abs(micros), 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        clock += f".{fraction:06}".rstrip("0") if fraction else ""
        words.append(("-" if micros < 0 else "+" if is_before else "") + clock)
    return " ".join(words)
