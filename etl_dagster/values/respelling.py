"""Texts of other types as this type would print them; null for those that aren't its values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_compute: Any = pc
_DAY: Final = r"\d{4}-\d{2}-\d{2}"
_TIME: Final = r"\d{2}:\d{2}:\d{2}(\.\d{1,6})?"


def matching(pattern: str, texts: Any) -> Any:
    """The texts that match as a whole (RE2)."""
    return _compute.if_else(_compute.match_substring_regex(texts, f"^({pattern})$"), texts, None)


def as_it_is(texts: Any) -> Any:
    """Every text."""
    return texts


def as_booleans(texts: Any) -> Any:
    """Words for true and false, in upper or lower case."""
    texts = _replaced(texts, "^(?i:t|true|y|yes|on|1)$", "t")
    return matching("t|f", _replaced(texts, "^(?i:f|false|n|no|off|0)$", "f"))


def as_uuids(texts: Any) -> Any:
    """With hyphens, in upper or lower case."""
    digits = [f"[0-9a-f]{{{count}}}" for count in (8, 4, 4, 4, 12)]
    return matching("-".join(digits), _compute.utf8_lower(texts))


def as_dates(texts: Any) -> Any:
    """Days, and moments, whose time is cut off."""
    days = _replaced(texts, rf"^({_DAY})[ T]\d{{2}}:[^ ]*$", r"\1")
    return _on_days_that_exist(matching(f"{_DAY}|-?infinity", days))


def as_timestamps(zone: str, texts: Any) -> Any:
    """Moments, and days, which become their beginnings.

    Args:
        zone: the offset for a day alone, such as ``+00``: then moments must have an offset. Empty:
            they must not have one.
    """
    texts = _replaced(texts, rf"^({_DAY})$", rf"\1 00:00:00{zone}")
    texts = _replaced(texts, rf"^({_DAY})T(.*)$", r"\1 \2")
    offset = ""
    if zone:
        texts, offset = _replaced(texts, "Z$", "+00"), r"[+-]\d{2}(:\d{2})?"
    moments = _on_days_that_exist(matching(f"{_DAY} {_TIME}{offset}|-?infinity", texts))
    return _in_utc(moments) if zone else moments


def _in_utc(texts: Any) -> Any:
    """Moments with an offset as Postgres prints them in UTC; null for an offset that no zone has.

    Arrow's cast reads any offset. It refuses a column with an infinity or another word, though, and
    what then reads one text after the other knows only what Postgres prints.
    """
    try:
        texts.cast(pa.timestamp("us", "UTC"))
        return texts
    except pa.ArrowInvalid:
        pass
    encoded = texts.dictionary_encode()
    in_utc: Any = pa.array([_one_in_utc(text) for text in encoded.dictionary.to_pylist()])
    return in_utc.cast(pa.string()).take(encoded.indices)


def _one_in_utc(text: str) -> str | None:
    if text.endswith(("+00", "infinity")):
        return text
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return f"{moment.replace(tzinfo=None).isoformat(' ')}+00"


def _replaced(texts: Any, pattern: str, replacement: str) -> Any:
    return _compute.replace_substring_regex(texts, pattern, replacement)


def _on_days_that_exist(texts: Any) -> Any:
    # Arrow has a year 0; the calendar goes from 1 BC to 1 AD.
    texts = _compute.if_else(_compute.starts_with(texts, "0000-"), None, texts)
    ordinary = _compute.match_substring_regex(texts, f"^{_DAY}")
    moments = _compute.utf8_slice_codeunits(_compute.if_else(ordinary, texts, None), 0, 19)
    try:
        moments.cast(pa.timestamp("s"))
        return texts
    except pa.ArrowInvalid:
        pass
    encoded = moments.dictionary_encode()
    exists: Any = pa.array([_exists(text) for text in encoded.dictionary.to_pylist()], pa.bool_())
    is_lost = _compute.fill_null(_compute.invert(exists.take(encoded.indices)), False)
    return _compute.if_else(is_lost, None, texts)


def _exists(moment: str) -> bool:
    try:
        datetime.fromisoformat(moment)
    except ValueError:
        return False
    return True
