"""What the source's catalog says of types, down to what each is built of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from etl_dagster.values.types import (
    Array,
    Attribute,
    Composite,
    Domain,
    Enum,
    Multirange,
    PgType,
    Range,
    Scalar,
)

Connection = psycopg.Connection[Any]

# An array is what some type names as its own: int2vector and the like have elements, but print
# otherwise. Ranges of versions before 14 have no multirange; hence the way through JSON.
_DESCRIBE: Final = """
with recursive needed (oid) as (
  select unnest(%(oids)s::oid[])
  union
  select part.oid
  from needed n
  join pg_type t on t.oid = n.oid
  cross join lateral (
    select t.typbasetype where t.typtype = 'd'
    union all
    select e.oid from pg_type e where e.oid = t.typelem and e.typarray = t.oid
    union all
    select r.rngsubtype from pg_range r where r.rngtypid = t.oid
    union all
    select r.rngtypid from pg_range r where to_jsonb(r) ->> 'rngmultitypid' = t.oid::text
    union all
    select a.atttypid from pg_attribute a
    where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
  ) part (oid)
)
select t.oid, t.typtype::text, format_type(t.oid, null),
       (select e.oid from pg_type e where e.oid = t.typelem and e.typarray = t.oid),
       t.typbasetype, t.typtypmod, t.typndims,
       (select r.rngsubtype from pg_range r where r.rngtypid = t.oid),
       (select r.rngtypid from pg_range r where to_jsonb(r) ->> 'rngmultitypid' = t.oid::text),
       (select json_agg(json_build_array(a.attname, a.atttypid, a.atttypmod, a.attndims)
                        order by a.attnum)
        from pg_attribute a
        where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0
        and not a.attisdropped),
       (select array_agg(l.enumlabel::text order by l.enumsortorder)
        from pg_enum l where l.enumtypid = t.oid),
       (select array_agg(l.oid::bigint order by l.enumsortorder)
        from pg_enum l where l.enumtypid = t.oid),
       (select x.extname::text from pg_depend d join pg_extension x on x.oid = d.refobjid
        where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        and d.refclassid = 'pg_extension'::regclass limit 1),
       t.typdelim::text,
       (select c.relkind <> 'c' from pg_class c where c.oid = t.typrelid),
       (select o.opcdefault and r.rngcollation = 0 from pg_range r
        join pg_opclass o on o.oid = r.rngsubopc where r.rngtypid = t.oid),
       (select format_type((to_jsonb(r) ->> 'rngmultitypid')::oid, null)
        from pg_range r where r.rngtypid = t.oid)
from needed join pg_type t on t.oid = needed.oid
"""


@dataclass(frozen=True, slots=True)
class _Described:
    """A row of pg_type, with what belongs to it elsewhere."""

    oid: int
    #: pg_type.typtype.
    kind: str
    name: str
    element: int | None
    base: int
    base_modifier: int
    base_dimensions: int
    subtype: int | None
    range: int | None
    attributes: list[tuple[str, int | str, int, int]] | None
    labels: list[str] | None
    label_ids: list[int] | None
    extension: str | None
    #: Between two elements of an array of this type.
    delimiter: str
    #: Whether a composite is the row type of a table or a view.
    of_table: bool | None = None
    #: Of a range: whether its order is the default one of its subtype, and of no collation; and its
    #: multirange's name, on servers that have these.
    is_plain: bool | None = None
    multirange_name: str | None = None


class TypeCatalog:
    """Some types of the source as they are at the moment of the question."""

    def __init__(self, described: Mapping[int, _Described]) -> None:
        self._described = described

    def type_of(self, oid: int, modifier: int = -1, dimensions: int = 0) -> PgType | None:
        """The type of a column; None where it is gone, or wasn't asked about.

        Args:
            modifier: pg_attribute.atttypmod; that of an array is its elements'.
            dimensions: pg_attribute.attndims.
        """
        found = self._described.get(oid)
        if found is None:
            return None
        if found.element is not None:
            element = self._part(found.element, modifier)
            delimiter = self._described[found.element].delimiter
            return Array(oid, found.name, element, max(dimensions, 1), delimiter)
        match found.kind:
            case "d":
                base = self._part(found.base, found.base_modifier, found.base_dimensions)
                return Domain(oid, found.name, base)
            case "e":
                ids = tuple(found.label_ids or ())
                return Enum(oid, found.name, tuple(found.labels or ()), ids)
            case "r" if found.subtype is not None:
                subtype, multirange = self._part(found.subtype), found.multirange_name or ""
                return Range(oid, found.name, subtype, bool(found.is_plain), multirange)
            case "m" if found.range is not None:
                inner = self._part(found.range)
                if isinstance(inner, Range):
                    return Multirange(oid, found.name, inner)
            case "c":
                attributes = (
                    Attribute(name, self._part(int(part), part_modifier, part_dimensions))
                    for name, part, part_modifier, part_dimensions in found.attributes or ()
                )
                return Composite(oid, found.name, tuple(attributes), bool(found.of_table))
        return Scalar(oid, found.name, modifier, found.extension or "")

    def _part(self, oid: int, modifier: int = -1, dimensions: int = 0) -> PgType:
        """A type that another is built of; one that is gone prints as it did."""
        return self.type_of(oid, modifier, dimensions) or Scalar(oid, "unknown", modifier)


def unknown_types(oids: Iterable[int]) -> set[int]:
    """The OIDs among these that only the catalog can describe."""
    from etl_dagster.values.registry import REGISTRY

    return {oid for oid in oids if oid not in REGISTRY}


def fetch_types(connection: Connection, oids: Collection[int]) -> TypeCatalog:
    """The types with these OIDs, and all that they are built of.

    One query, however deep they are. Names are as format_type() qualifies them.

    Source: PostgreSQL documentation, "pg_type", "pg_range", "pg_enum", "pg_attribute".
    """
    if not oids:
        return TypeCatalog({})
    rows = connection.execute(_DESCRIBE, {"oids": list(oids)}).fetchall()
    return TypeCatalog({row[0]: _Described(*row) for row in rows})
