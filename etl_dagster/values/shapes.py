"""How a column at the destination differs from the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

#: What replaces values: null, one constant, parts of their text, or a keyed hash of it.
MaskKind: TypeAlias = Literal["null", "constant", "partial", "hash"]


@dataclass(frozen=True, slots=True)
class Mask:
    """What replaces a column's values."""

    kind: MaskKind
    #: The constant, as Postgres prints it; under `partial`, the text for the hidden characters.
    text: str = ""
    #: Characters of the text that `partial` shows, at its beginning and at its end.
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class CastTo:
    """A type that values are read as instead of their own."""

    type_oid: int
    type_modifier: int = -1
    #: As format_type() spells it.
    type_name: str = ""


@dataclass(frozen=True, slots=True)
class ColumnShape:
    """What was chosen for one column; kept until its table is copied again.

    It belongs to the column, not to its name: a column that is renamed in the source stays masked.
    """

    #: The column's name in the source when this was chosen.
    chosen_as: str
    #: Whether the destination doesn't have the column.
    left_out: bool = False
    #: Its name at the destination; None: the name that it has in the source.
    name: str | None = None
    mask: Mask | None = None
    cast: CastTo | None = None
    #: Whether the condition for the table's rows names it.
    in_condition: bool = False
    #: Whether anything needs the values; else they are not read in the source, and not decoded.
    is_read: bool = True

    @property
    def hides(self) -> bool:
        """Whether the destination must not have the values."""
        return self.left_out or self.mask is not None


def shape_to_json(shape: ColumnShape) -> dict[str, Any]:
    """The shape as JSON, as it is stored with its column."""
    return {name: value for name, value in asdict(shape).items() if value is not None}


def shape_from_json(kept: Mapping[str, Any]) -> ColumnShape:
    """The inverse of `shape_to_json`."""
    known = dict(kept)
    if (mask := known.get("mask")) is not None:
        known["mask"] = Mask(**mask)
    if (cast := known.get("cast")) is not None:
        known["cast"] = CastTo(**cast)
    return ColumnShape(**known)
