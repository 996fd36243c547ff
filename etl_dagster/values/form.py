"""How the values of a type are held, and a built-in type with all that is known of it."""

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

#: How values without parts are spelled in JSON; `format-2.json` of the HTTP destination has a
#: definition of each under the same name.
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

#: Where ``::text`` is the type's output function, or its equal.
CAST: Literal["{0}::text"] = "{0}::text"
#: The text that the stream would send. A cast isn't always that: ``inet::text`` adds a netmask, and
#: a type may bring a cast of its own. format() calls the output function, but turns null into an
#: empty string; `is not null` asks something else of a composite.
OUTPUT = "case when {0} is distinct from null then format('%s', {0}) end"


def print_plain(array: AnyArray) -> list[str | None]:
    """Values whose text in Arrow is one that Postgres reads."""
    texts: list[str | None] = array.cast(pa.string()).to_pylist()
    return texts


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How values are held in Arrow and in JSON, and how they get there and back."""

    arrow: pa.DataType
    read: Reader
    #: Of a value as `python.to_dicts` gives it, what json.dumps() takes; None: itself.
    to_json: Callable[[Any], Any] | None = None
    #: The way back.
    from_json: Callable[[Any], Any] | None = None
    print: Printer = print_plain
    #: How JSON spells it, where it has no parts.
    spelling: Spelling = "text"
    #: For people.
    json: str = "string as Postgres prints it"
    #: What a string means, where it isn't just text.
    meaning: Literal["json", "uuid"] | None = None
    #: DuckDB's type, where it isn't that of the Arrow type.
    duckdb: str | None = None
    #: The forms of its parts: of a list one, of a struct its fields', of a map key's and item's.
    parts: tuple[Form, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """A value at the edge of a type, as Postgres prints it, and what becomes of it."""

    text: str
    #: For people.
    becomes: str = "itself"
    #: Whether it is an `Odd` value.
    is_odd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnType:
    """How values are held where the destination has a type for them that Arrow has not."""

    #: Its Arrow type is text; its `duckdb` is the type that the destination makes of it.
    form: Form
    #: Edges of the type that become something else here than by `BuiltIn.edges`.
    edges: tuple[Edge, ...] = ()
    #: Whether rows may be found by it: values are equal where their texts are, and only there.
    in_keys: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltIn:
    """A type that Postgres brings; one row of the registry."""

    oid: int
    #: As format_type() spells it.
    name: str
    #: Or a function of the type modifier (pg_attribute.atttypmod).
    form: Form | Callable[[int], Form]
    #: Values worth a look, in tests and in the documentation; at least one.
    edges: tuple[Edge, ...]
    #: From what the ADBC driver reads from a binary COPY to the values that the text would give;
    #: None: it reads something else, so that the copy selects the text.
    adbc: Callable[[AnyArray], Parsed] | None = None
    #: The text that the stream sends, as an SQL template in which ``{0}`` is the column.
    output: str = OUTPUT
    #: Whether values print in ASCII, whatever the encoding of the database.
    is_ascii: bool = False
    #: What the type modifier limits: a larger one, or none, changes no value.
    bound: Literal["length", "digits"] | None = None
    #: What its text says besides the value, so that it may change while the value doesn't; for
    #: people. A row isn't found by such a text.
    text_tells: str = ""
    #: Types with the same bytes for the same value (their binary-coercible casts).
    same_bytes: Literal["text"] | None = None
    #: OIDs of the narrower types whose every value this type holds as the same value.
    widens: frozenset[int] = frozenset()
    #: Texts of other types as this type prints them, null where they aren't its values; None:
    #: no other type is cast to it.
    reads: Callable[[Any], Any] | None = None
    #: Other names by which people ask for the type.
    aliases: tuple[str, ...] = ()
    #: None: destinations hold its values as `form` does.
    own: OwnType | None = None
    #: Why a type that DuckDB seems to have holds its values as text there; for people.
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
