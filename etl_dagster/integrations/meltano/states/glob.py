"""State ID patterns, exactly as a shell has them: ``* ? [..] [!..]``, case-sensitive."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

_SPECIAL = re.compile(r"[*?\[]")


def matcher(pattern: str | None) -> Callable[[str], bool] | None:
    """A function that tells whether an ID matches, or None where every ID does.

    >>> matcher("dev:tap_*")("dev:tapXa-to-b")
    False
    """
    # Meltano takes an empty pattern for none.
    if not pattern or set(pattern) == {"*"}:
        return None
    compiled = re.compile(fnmatch.translate(pattern))
    return lambda state_id: compiled.match(state_id) is not None


def literal_prefix(pattern: str | None) -> str:
    """What each matching ID begins with; may be empty.

    >>> literal_prefix("dev:tap-[ab]*")
    'dev:tap-'
    """
    return _SPECIAL.split(pattern or "", maxsplit=1)[0]
