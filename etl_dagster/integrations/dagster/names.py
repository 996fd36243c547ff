"""Names that Dagster accepts, whatever a table or a stream is called.

Postgres accepts any 63 bytes as a name. Dagster accepts letters, digits and ``_`` in the names of
steps. It derives such names from asset keys, which may contain ``-`` and ``.`` as well. Every
function here but `identifier_part` is injective: two names never become one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from dagster import AssetKey

#: A part of an asset key that needs no escaping.
_ORDINARY_PART = re.compile(r"[A-Za-z0-9_.-]+")
#: An escaped stretch: the code points in hexadecimal, as in ``gr-uf6.df-e`` for größe.
_ESCAPED = re.compile(r"-u[0-9a-f.]*-")
#: Cuts a name into what stays and what is escaped, by turns.
_STRETCH = re.compile(r"[A-Za-z0-9_]+|[^A-Za-z0-9_]+")
#: Parts of this form can be told apart again after they were joined by ``__``.
_PLAIN_PART = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")
_READABLE_CHARACTERS = 60


def key_part(name: str) -> str:
    """A part of an asset key: the name itself where Dagster accepts it, else escaped.

    A name that looks like an escaped one is escaped, too.

    >>> key_part("order_items"), key_part("größe"), key_part("a b/c")
    ('order_items', 'gr-uf6.df-e', 'a-u20-b-u2f-c')
    """
    if _ORDINARY_PART.fullmatch(name) and not _ESCAPED.search(name):
        return name
    return escaped(name)


def identifier_part(name: str) -> str:
    """As `key_part`, for a name that is also an identifier of Meltano's: ``-`` becomes ``_``.

    So it is not injective: ``a-b`` and ``a_b`` become the same.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name.replace("-", "_")
    return escaped(name)


def escaped(name: str) -> str:
    """The name with every character but letters, digits and ``_`` escaped."""

    def escape(stretch: str) -> str:
        if stretch[0].isascii() and (stretch[0].isalnum() or stretch[0] == "_"):
            return stretch
        return "-u" + ".".join(f"{ord(character):x}" for character in stretch) + "-"

    return "".join(escape(stretch) for stretch in _STRETCH.findall(name)) or "-u-"


def step_name(prefix: str, parts: Sequence[str]) -> str:
    """The name of a step: the parts joined if that is unambiguous, else readable with a digest.

    >>> step_name("copy", ["shop", "public", "orders"])
    'copy__shop__public__orders'
    """
    if all(_PLAIN_PART.fullmatch(part) for part in parts):
        return "__".join([prefix, *parts])
    words = re.findall(r"[A-Za-z0-9]+", " ".join(parts))
    readable = "_".join(words)[:_READABLE_CHARACTERS].strip("_")
    digest = hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]
    # Three underscores in a row don't occur between plain parts.
    return f"{prefix}__{readable}___{digest}"


def groups_with_distinct_identifiers(keys: Iterable[AssetKey]) -> list[list[AssetKey]]:
    """The keys, in as few groups as needed so that one step can take and return a whole group.

    Dagster names inputs and outputs by the asset key: the parts are joined by one or two ``_``, and
    ``-`` and ``.`` become ``_``. So two keys may have one name, in a step or as its dependencies.
    """
    groups: list[tuple[set[str], list[AssetKey]]] = []
    for key in keys:
        identifiers = {_identifier(key, joint) for joint in ("_", "__")}
        place = next((group for group in groups if not identifiers & group[0]), None)
        if place is None:
            place = (set(), [])
            groups.append(place)
        place[0].update(identifiers)
        place[1].append(key)
    return [group for _, group in groups]


def _identifier(key: AssetKey, joint: str) -> str:
    return joint.join(key.path).replace("-", "_").replace(".", "_")
