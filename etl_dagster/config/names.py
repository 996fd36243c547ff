"""Names that become part of the names of slots: of pipelines, their destinations and shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Separates the name of a pipeline from that of one of its destinations or shards.
BETWEEN = "__"
#: The longest name of a pipeline, in characters: slot names have it in them, and Postgres keeps 63
#: bytes of these.
LONGEST = 30
_SLUG = re.compile(r"[a-z][a-z0-9_]*")


def is_slug(name: str) -> bool:
    """Whether a name begins with a lower-case letter, and has only such letters, digits and _."""
    return _SLUG.fullmatch(name) is not None


def mistakes_of_names(
    section: str, pipeline: str, names: Iterable[str], what: str
) -> Iterator[str]:
    """What is wrong with names that are put after the pipeline's, a sentence for each.

    Args:
        section: of the configuration, which has the names.
        what: they name, in one word.
    """
    for name in names:
        place = f"{section}.{name}"
        if not is_slug(name) or BETWEEN in name or name.endswith("_"):
            yield (
                f"{place}: a name must begin with a lower-case letter, hold only lower-case "
                "letters, digits and single _, and not end with one"
            )
        elif len(name) + len(BETWEEN) + len(pipeline) > LONGEST:
            yield (
                f"{place}: the names of the pipeline and of this {what} must together have at "
                f"most {LONGEST - len(BETWEEN)} characters"
            )
