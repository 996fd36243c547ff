"""One column of a table, as the source describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias

from etl_dagster.errors import SchemaTooNew
from etl_dagster.values.shapes import ColumnShape, shape_from_json, shape_to_json
from etl_dagster.values.types import PgType, type_from_json, type_to_json

#: As nested types of the destination, as JSON, or as the text that Postgres prints.
Nested: TypeAlias = Literal["native", "json", "text"]
#: The format of a column's JSON. A column has a larger one only if it uses something that earlier
#: versions of the package would misread; they refuse it then. Keys that are only added, they
#: ignore. Columns without a format were written before there was a `type`.
FORMAT: Final = 2
#: A column that is held as text: earlier versions would expect its own type.
_TEXT_FORMAT: Final = 3
#: A numeric column that is held as a number by choice: they would expect text.
_NUMERIC_FORMAT: Final = 4
#: A column with a type of the destination's own, such as DuckDB's INTERVAL: they would expect text.
_OWN_TYPE_FORMAT: Final = 5
#: A column whose odd values put rows into quarantine: they would leave rows there.
_QUARANTINE_FORMAT: Final = 6
#: A table in another mode than mirror: they would delete rows of it.
MODE_FORMAT: Final = 7
#: A column that differs at the destination: they would not hide its values.
_SHAPE_FORMAT: Final = 8


@dataclass(frozen=True, slots=True)
class ColumnSchema:
    """One published column."""

    name: str
    #: pg_type.oid; a domain keeps its own OID here and its base type's in `base_type_oid`.
    type_oid: int
    #: pg_attribute.atttypmod; -1 where the type has none.
    type_modifier: int = -1
    #: As format_type() spells it, e.g. ``numeric(12,2)``; for people, never parsed.
    type_name: str = ""
    #: pg_attribute.attnum: stays when the column is renamed, and is not used again after DROP
    #: COLUMN.
    attnum: int = 0
    nullable: bool = True
    #: 1-based place in the primary key, None outside it.
    primary_key_ordinal: int | None = None
    #: Part of the replica identity (key flag of the Relation message).
    is_identity: bool = False
    #: For a domain: the OID of its base type; else equal to `type_oid` (0 = unknown).
    base_type_oid: int = 0
    #: For a column that was added: its value in the rows that existed before, as Postgres prints it
    #: (pg_attribute.attmissingval); None for null. A row's value, so it is never shown or logged.
    missing_value: str | None = field(default=None, compare=False, repr=False)
    #: The parts that its type is built of. None for built-in types without parts, which their OID
    #: and modifier describe, and if it was not read: then values are as Postgres prints them.
    type: PgType | None = None
    #: How values with parts are held, if `type` has parts; chosen when the table is copied, and
    #: kept until it is copied again.
    nested: Nested = "text"
    #: Whether its values are held as the text that Postgres prints, whatever its type; chosen and
    #: kept like `nested`.
    as_text: bool = False
    #: How the values of a numeric without precision are held: ``text``, ``double``, or for example
    #: ``decimal(20,4)``; chosen and kept like `nested`.
    numeric: str = "text"
    #: Whether the destination holds its values in a type of its own that Arrow doesn't have, such
    #: as DuckDB's ENUM and INTERVAL; chosen and kept like `nested`.
    own_type: bool = False
    #: Whether a row is kept apart from its table while this column's type can't hold its value;
    #: chosen and kept like `nested`.
    quarantine: bool = False
    #: How it differs at the destination; None: not at all. Chosen when the table is copied or the
    #: column added, and kept like `nested`, also when the column gets another type.
    shape: ColumnShape | None = None

    @property
    def effective_type_oid(self) -> int:
        """The OID that decides how values are decoded."""
        return self.base_type_oid or self.type_oid

    @property
    def is_read(self) -> bool:
        """Whether anything needs the column's values; else all of them are null here."""
        return self.shape is None or self.shape.is_read


_FIELDS: Final = frozenset(each.name for each in fields(ColumnSchema))


def column_to_json(column: ColumnSchema) -> dict[str, Any]:
    """The column as JSON, as stores and files keep it."""
    kept = asdict(column)
    kept["type"] = None if column.type is None else type_to_json(column.type)
    as_text, numeric = kept.pop("as_text"), kept.pop("numeric")
    own_type, quarantine = kept.pop("own_type"), kept.pop("quarantine")
    kept.pop("shape")
    if column.shape is not None:
        chosen = {"own_type": own_type, "quarantine": quarantine}
        shaped = {"shape": shape_to_json(column.shape)}
        more = {"as_text": as_text, "numeric": numeric} | chosen | shaped
        return {"format": _SHAPE_FORMAT} | more | kept
    if own_type or quarantine:
        more = {"as_text": as_text, "numeric": numeric, "own_type": own_type}
        if quarantine:
            return {"format": _QUARANTINE_FORMAT} | more | {"quarantine": True} | kept
        return {"format": _OWN_TYPE_FORMAT} | more | kept
    if numeric != "text":
        return {"format": _NUMERIC_FORMAT, "as_text": as_text, "numeric": numeric} | kept
    if not as_text:
        return {"format": FORMAT} | kept
    return {"format": _TEXT_FORMAT, "as_text": True} | kept


def column_from_json(kept: Mapping[str, Any]) -> ColumnSchema:
    """The inverse of `column_to_json`, also of that of an earlier version.

    Raises:
        SchemaTooNew: a later version wrote it in a format that this one doesn't know.
    """
    if (found := kept.get("format", 1)) > _SHAPE_FORMAT:
        raise SchemaTooNew(f"a table's schema is kept in format {found}; this is {_SHAPE_FORMAT}")
    known = {name: value for name, value in kept.items() if name in _FIELDS}
    if (type_ := known.get("type")) is not None:
        known["type"] = type_from_json(type_)
    if (shape := known.get("shape")) is not None:
        known["shape"] = shape_from_json(shape)
    return ColumnSchema(**known)
