"""One column of a table, as the source describes it."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    #: pg_attribute.attnum: survives a rename, is never used again after a DROP COLUMN.
    attnum: int = 0
    nullable: bool = True
    #: 1-based place in the primary key, None outside it.
    primary_key_ordinal: int | None = None
    #: Part of the replica identity (key flag of the Relation message).
    is_identity: bool = False
    #: For domains: the type behind it; else equal to `type_oid` (0 = unknown).
    base_type_oid: int = 0
    #: For a column that was added: its value, as Postgres' text, in the rows that were there
    #: (pg_attribute.attmissingval); None for null. A row's value, so never shown or logged.
    missing_value: str | None = field(default=None, compare=False, repr=False)

    @property
    def effective_type_oid(self) -> int:
        """The OID that decides how values are decoded."""
        return self.base_type_oid or self.type_oid
