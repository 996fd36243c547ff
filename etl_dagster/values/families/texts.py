"""Texts, and what has a text of its own: JSON, XML, search, names of things in the database."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values import oids
from etl_dagster.values.casts import bits_of
from etl_dagster.values.form import CAST, AnyArray, BuiltIn, Edge, Form, OwnType
from etl_dagster.values.parsed import Parsed, odd_where
from etl_dagster.values.respelling import as_it_is, as_uuids
from etl_dagster.values.strings import read_text, valid_text

_compute: Any = pc

#: The text that Postgres prints; also of types that nothing is known of.
AS_PRINTED: Final = Form(pa.string(), read_text)
_TEXT: Final = Form(pa.string(), read_text, json="string")
_OWN_TEXT: Final = "string: the value's own text"
# Not DuckDB's JSON, which refuses what this may hold, such as half of a surrogate pair.
_JSON: Final = Form(pa.string(), read_text, spelling="json", json=_OWN_TEXT, meaning="json")
_JSONB: Final = replace(_JSON, duckdb="JSON")
#: 36 characters, which every destination and every Arrow function takes.
_UUID: Final = Form(pa.string(), read_text, meaning="uuid", duckdb="UUID")
_ADBC: Final = partial(bits_of, pa.string())


def own_text(name: str, *odd: Edge, in_keys: bool = True) -> OwnType:
    """A type that destinations with one of this name make of the text that Postgres prints.

    Args:
        odd: texts that it does not take.
    """
    read = partial(_read_held, tuple(edge.text for edge in odd)) if odd else read_text
    return OwnType(form=Form(pa.string(), read, duckdb=name), edges=odd, in_keys=in_keys)


def _read_held(not_held: tuple[str, ...], strings: AnyArray) -> Parsed:
    """The texts, but for those that the type doesn't take."""
    valid = valid_text(strings).array
    is_odd = _compute.is_in(valid, pa.array(not_held, valid.type))
    if not is_odd.true_count:
        return read_text(valid)
    held = read_text(_compute.if_else(is_odd, None, valid))
    return Parsed(held.array, odd_where(valid, is_odd))


def printed(oid: int, name: str, *edges: str, **more: Any) -> BuiltIn:
    """A type whose values are held as Postgres prints them."""
    found = tuple(map(Edge, edges))
    return BuiltIn(oid=oid, name=name, form=AS_PRINTED, edges=found, **more)


_named = partial(printed, text_tells="names of objects, which may be renamed")

ROWS: Final = (
    BuiltIn(
        oid=oids.TEXT,
        name="text",
        reads=as_it_is,
        form=_TEXT,
        adbc=_ADBC,
        same_bytes="text",
        edges=(
            Edge(""),
            Edge("ä€😀"),
            Edge("tab\t newline\n quote' backslash\\"),
            Edge("x" * 5000),
        ),
    ),
    BuiltIn(
        oid=oids.VARCHAR,
        name="character varying",
        form=_TEXT,
        adbc=_ADBC,
        same_bytes="text",
        bound="length",
        edges=(Edge("short"), Edge("  ")),
    ),
    BuiltIn(
        oid=oids.BPCHAR,
        name="character",
        form=_TEXT,
        adbc=_ADBC,
        edges=(Edge("a", "itself, filled up with spaces as the column's length demands"),),
    ),
    BuiltIn(oid=oids.NAME, name="name", form=_TEXT, adbc=_ADBC, edges=(Edge("n"), Edge(""))),
    # ADBC reads an empty value as a zero character.
    BuiltIn(oid=oids.CHAR, name='"char"', form=_TEXT, output=CAST, edges=(Edge("c"), Edge(""))),
    BuiltIn(
        oid=oids.JSON,
        name="json",
        form=_JSON,
        adbc=_ADBC,
        edges=(Edge('{"a" :  1, "a": 2}'), Edge("null"), Edge('"\\ud800"')),
    ),
    BuiltIn(
        oid=oids.JSONB,
        name="jsonb",
        form=_JSONB,
        adbc=_ADBC,
        edges=(Edge('{"a": null, "b": [1, 2.50]}'), Edge("null")),
    ),
    BuiltIn(
        oid=oids.UUID,
        name="uuid",
        reads=as_uuids,
        form=_UUID,
        output=CAST,
        is_ascii=True,
        edges=(Edge("6f1b6a3c-1111-2222-3333-444455556666"),),
    ),
    printed(oids.XML, "xml", "<a>1</a>", "text"),
    printed(3614, "tsvector", "'a':1A 'b':2", ""),
    printed(3615, "tsquery", "'a' & !'b'", ""),
    printed(4072, "jsonpath", '$."a"[*]'),
    printed(1790, "refcursor", "c"),
    _named(24, "regproc", "now", "-"),
    _named(2202, "regprocedure", "now()"),
    _named(2203, "regoper", "||/"),
    _named(2204, "regoperator", "+(integer,integer)"),
    _named(2205, "regclass", "pg_class", "-"),
    _named(2206, "regtype", "integer"),
    _named(3734, "regconfig", "english"),
    _named(3769, "regdictionary", "simple"),
    _named(4089, "regnamespace", "pg_catalog"),
    _named(4096, "regrole", "-"),
    _named(4191, "regcollation", '"C"'),
    _named(1033, "aclitem", "=r/postgres"),
)
