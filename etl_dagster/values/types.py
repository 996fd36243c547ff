"""What pg_type has about a type, down to the types that it is built of.

The OIDs of a user's own types differ from database to database, and a type may be dropped before a
value is read. So a schema keeps the whole tree, also in its JSON. Two types are equal if their
values are printed and held in the same way: names of types and labels of enums don't matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never

#: The first OID that a user's own types can have. Source: Postgres' access/transam.h.
FIRST_OWN: Final = 16384


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type whose values have no parts."""

    oid: int
    #: As format_type() spells it, without the modifier.
    name: str
    #: pg_attribute.atttypmod; -1 where the type has none.
    modifier: int = -1
    #: The extension that it belongs to; empty for built-in types and for a user's own.
    extension: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    """An array; values may have another number of dimensions, and lower bounds other than 1."""

    oid: int
    name: str = field(compare=False)
    element: PgType
    #: As declared: pg_attribute.attndims or pg_type.typndims; at least 1.
    dimensions: int = 1
    #: pg_type.typdelim of the element: the character between two elements.
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class Range:
    """A range of a type that has an order."""

    oid: int
    name: str = field(compare=False)
    subtype: PgType
    #: Whether it uses the default order of its subtype, which is the same in every database.
    is_plain: bool = field(default=False, compare=False)
    #: The name of its multirange; empty if it has none (before Postgres 14).
    multirange: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Multirange:
    """An ordered list of ranges that don't overlap."""

    oid: int
    name: str = field(compare=False)
    range: Range


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column of a composite type."""

    name: str
    type: PgType


@dataclass(frozen=True, slots=True)
class Composite:
    """A row type, of a table or by CREATE TYPE ... AS (...)."""

    oid: int
    name: str = field(compare=False)
    #: In order, without those that were dropped.
    attributes: tuple[Attribute, ...]
    #: Whether it is that of a table or a view.
    of_table: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Enum:
    """A list of labels. More may be added at any place, and the stream doesn't report it."""

    oid: int
    name: str = field(compare=False)
    #: In their order.
    labels: tuple[str, ...] = field(compare=False)
    #: pg_enum.oid of each: a renamed label keeps it. Empty if it was not read.
    label_ids: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Domain:
    """Another type with constraints; it has the same values."""

    oid: int
    name: str = field(compare=False)
    base: PgType


PgType: TypeAlias = Scalar | Array | Range | Multirange | Composite | Enum | Domain


def without_domains(type_: PgType) -> PgType:
    """The base type of a domain; any other type itself."""
    while isinstance(type_, Domain):
        type_ = type_.base
    return type_


def contains_composite(type_: PgType) -> bool:
    """Whether the type is a composite, or has one in it."""
    match type_:
        case Composite():
            return True
        case Array():
            return contains_composite(type_.element)
        case Range():
            return contains_composite(type_.subtype)
        case Multirange():
            return contains_composite(type_.range)
        case Domain():
            return contains_composite(type_.base)
        case Scalar() | Enum():
            return False


def is_users_own(type_: PgType) -> bool:
    """Whether a user made the type, and another Postgres can have it under the same name.

    That is so for an enum, a domain, a composite that isn't a table's, a range of a built-in type
    in its default order, and an array of one of these.
    """
    match type_:
        case Enum() | Domain():
            return True
        case Composite():
            return not type_.of_table
        case Array():
            return is_users_own(type_.element)
        case Range():
            is_own = type_.oid >= FIRST_OWN and type_.is_plain
            return is_own and isinstance(type_.subtype, Scalar) and type_.subtype.oid < FIRST_OWN
        case Multirange():
            return is_users_own(type_.range)
    return False


def leaves_in(type_: PgType) -> Iterator[Scalar | Enum]:
    """The types without parts that are in the type."""
    match type_:
        case Scalar() | Enum():
            yield type_
        case Array():
            yield from leaves_in(type_.element)
        case Range():
            yield from leaves_in(type_.subtype)
        case Multirange():
            yield from leaves_in(type_.range)
        case Composite():
            for attribute in type_.attributes:
                yield from leaves_in(attribute.type)
        case Domain():
            yield from leaves_in(type_.base)
        case _:
            assert_never(type_)


def scalars_in(type_: PgType) -> Iterator[Scalar]:
    """As `leaves_in`, without enums."""
    return (leaf for leaf in leaves_in(type_) if isinstance(leaf, Scalar))


def enums_in(type_: PgType) -> Iterator[Enum]:
    """The enums that are in the type."""
    return (leaf for leaf in leaves_in(type_) if isinstance(leaf, Enum))


# -- JSON --------------------------------------------------------------------------------------


def type_to_json(type_: PgType) -> dict[str, Any]:
    """The tree as an object; ``kind`` says which class it is."""
    named = {"kind": type(type_).__name__.lower(), "oid": type_.oid, "name": type_.name}
    match type_:
        case Scalar():
            more: dict[str, Any] = {"modifier": type_.modifier, "extension": type_.extension}
        case Array():
            more = {
                "element": type_to_json(type_.element),
                "dimensions": type_.dimensions,
                "delimiter": type_.delimiter,
            }
        case Range():
            more = {
                "subtype": type_to_json(type_.subtype),
                "is_plain": type_.is_plain,
                "multirange": type_.multirange,
            }
        case Multirange():
            more = {"range": type_to_json(type_.range)}
        case Composite():
            attributes = [
                {"name": attribute.name, "type": type_to_json(attribute.type)}
                for attribute in type_.attributes
            ]
            more = {"attributes": attributes, "of_table": type_.of_table}
        case Enum():
            more = {"labels": list(type_.labels), "label_ids": list(type_.label_ids)}
        case Domain():
            more = {"base": type_to_json(type_.base)}
        case _:
            assert_never(type_)
    return named | more


def type_from_json(content: Mapping[str, Any]) -> PgType:
    """The inverse of `type_to_json`.

    Raises:
        ValueError, KeyError, TypeError: `type_to_json` doesn't make such content.
    """
    oid, name = content["oid"], content["name"]
    match content["kind"]:
        case "scalar":
            return Scalar(oid, name, content["modifier"], content["extension"])
        case "array":
            element = type_from_json(content["element"])
            return Array(oid, name, element, content["dimensions"], content["delimiter"])
        case "range":
            is_plain, multirange = content.get("is_plain", False), content.get("multirange", "")
            return Range(oid, name, type_from_json(content["subtype"]), is_plain, multirange)
        case "multirange":
            inner = type_from_json(content["range"])
            if not isinstance(inner, Range):
                raise ValueError("a multirange of something that is not a range")
            return Multirange(oid, name, inner)
        case "composite":
            attributes = (
                Attribute(attribute["name"], type_from_json(attribute["type"]))
                for attribute in content["attributes"]
            )
            return Composite(oid, name, tuple(attributes), content.get("of_table", False))
        case "enum":
            ids = tuple(content.get("label_ids", ()))
            return Enum(oid, name, tuple(content["labels"]), ids)
        case "domain":
            return Domain(oid, name, type_from_json(content["base"]))
    raise ValueError(f"a type of an unknown kind: {content['kind']}")
