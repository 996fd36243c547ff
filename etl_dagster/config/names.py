"""Names that become part of the names of slots: of pipelines, their destinations and shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Stands between the names of a pipeline and of one of its destinations or shards.
BETWEEN = "__"
#: Of a pipeline: the name of a slot holds it, and Postgres keeps 63 bytes of that.
LONGEST = 30
_SLUG = re.compile(r"[a-z][a-z0-9_]*")


def is_slug(name: str) -> bool:
    """Whether a name begins with a lower-case letter, and holds only such, digits and _."""
    return _SLUG.fullmatch(name) is not None


def mistakes_of_names(
    section: str, pipeline: str, names: Iterable[str], what: str
) -> Iterator[str]:
    """What is wrong with names that follow the pipeline's.

    Args:
        section: where in the configuration they are.
        what: is named.
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
                f"{place}: the names of pipeline and {what} have together more than "
                f"{LONGEST - len(BETWEEN)} characters"
            )
