"""How the values of a type are held, and all that is known of a built-in type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from etl_dagster.values.parsed import Parsed

AnyArray: TypeAlias = "pa.Array[Any]"
#: From the text that Postgres prints (a string or large string array) to values.
Reader: TypeAlias = Callable[[AnyArray], Parsed]
#: From values to texts that Postgres reads back as the same values.
Printer: TypeAlias = Callable[[AnyArray], "list[str | None]"]

#: How values without parts are spelled in JSON; `format-2.json` of the HTTP destination defines
#: each under the same name.
Spelling: TypeAlias = Literal[
    "boolean",
    "integer",
    "float",
    "digits",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "base64",
    "json",
    "text",
]

#: For types whose ``::text`` is the same as their output function.
CAST: Literal["{0}::text"] = "{0}::text"
#: The text that the stream would send. A cast may differ from it: ``inet::text`` adds a netmask,
#: and a type may bring a cast of its own. format() calls the output function, but turns null into
#: an empty string. `is not null` would be wrong: it is false for a composite with a null attribute.
OUTPUT = "case when {0} is distinct from null then format('%s', {0}) end"


def print_plain(array: AnyArray) -> list[str | None]:
    """Values whose text in Arrow is one that Postgres can read."""
    texts: list[str | None] = array.cast(pa.string()).to_pylist()
    return texts


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How values are held in Arrow and in JSON, and how they are converted."""

    arrow: pa.DataType
    read: Reader
    #: From a value of `python.to_dicts` to one that json.dumps() accepts; None: they are the same.
    to_json: Callable[[Any], Any] | None = None
    #: The inverse of `to_json`.
    from_json: Callable[[Any], Any] | None = None
    print: Printer = print_plain
    #: The spelling in JSON, if it has no parts.
    spelling: Spelling = "text"
    #: The spelling in JSON, for people.
    json: str = "string as Postgres prints it"
    #: What a string holds, if it isn't just text.
    meaning: Literal["json", "uuid"] | None = None
    #: DuckDB's type, if it isn't the one of the Arrow type.
    duckdb: str | None = None
    #: The forms of its parts: one for a list, one for each field of a struct, two for a map (of the
    #: keys and of the items).
    parts: tuple[Form, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """A value at the edge of a type's range, as Postgres prints it, and what becomes of it."""

    text: str
    #: For people.
    becomes: str = "itself"
    #: Whether it is an `Odd` value.
    is_odd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnType:
    """How values are held if the destination has a type for them that Arrow doesn't have."""

    #: Its Arrow type is text; its `duckdb` is the type at the destination.
    form: Form
    #: Edges of the type that become something else than in `BuiltIn.edges`.
    edges: tuple[Edge, ...] = ()
    #: Whether rows may be found by it: then values are equal exactly if their texts are.
    in_keys: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltIn:
    """A built-in type of Postgres; one row of the registry."""

    oid: int
    #: As format_type() spells it.
    name: str
    #: The form, or a function that returns it for a type modifier (pg_attribute.atttypmod).
    form: Form | Callable[[int], Form]
    #: Values for tests and for the documentation; at least one.
    edges: tuple[Edge, ...]
    #: From what the ADBC driver reads from a binary COPY to the values that the text would give;
    #: None: that isn't possible, so the copy selects the text.
    adbc: Callable[[AnyArray], Parsed] | None = None
    #: The text that the stream sends, as an SQL template in which ``{0}`` is the column.
    output: str = OUTPUT
    #: Whether values print in ASCII, whatever the encoding of the database.
    is_ascii: bool = False
    #: What the type modifier limits: a larger modifier, or none, changes no value.
    bound: Literal["length", "digits"] | None = None
    #: What the text has in it besides the value, so that it may change while the value doesn't; for
    #: people. Rows are not found by such a text.
    text_tells: str = ""
    #: Types with the same bytes for the same value (their binary-coercible casts).
    same_bytes: Literal["text"] | None = None
    #: OIDs of the narrower types whose every value this type holds as the same value.
    widens: frozenset[int] = frozenset()
    #: From texts of other types to the texts that this type prints, null for those that aren't
    #: values of it; None: no other type is cast to it.
    reads: Callable[[Any], Any] | None = None
    #: Other names of the type.
    aliases: tuple[str, ...] = ()
    #: None: all destinations hold its values as `form` does.
    own: OwnType | None = None
    #: Why its values are text in DuckDB, although DuckDB seems to have the type; for people.
    stays_text: str = ""

    def form_for(self, type_modifier: int, *, own_type: bool = False) -> Form:
        if own_type and self.own is not None:
            return self.own.form
        return self.form if isinstance(self.form, Form) else self.form(type_modifier)

    def edges_for(self, *, own_type: bool) -> tuple[Edge, ...]:
        """The edges, each with what becomes of it."""
        if not own_type or self.own is None:
            return self.edges
        others = {edge.text: edge for edge in self.own.edges}
        same = [edge for edge in self.edges if edge.text not in others]
        return (*same, *others.values())
