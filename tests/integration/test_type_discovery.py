"""What a type is built of is known, from the catalog and for columns that a message describes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.runtime.tables.schemas import SchemaTracker, ask_types
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.source.control import SourceControl
from etl_dagster.source.types import fetch_types
from etl_dagster.stores.memory import MemoryStore
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
from tests.support.database import PUBLICATION, Database

MakeConfig = Callable[..., PipelineConfig]

_TYPES = (
    "create type mood as enum ('sad', 'happy')",
    "alter type mood add value 'so so' before 'happy'",
    "create domain amount as numeric(8,3)",
    "create domain price as amount check (value > 0)",
    "create domain prices as price[]",
    "create type dated as (at date, gone text, matrix numeric(5,1)[][])",
    "alter type dated drop attribute gone",
    "create type pair as (first dated, moods mood[])",
    "create type span as range (subtype = price)",
    "create table other (id int, note text)",
)
_NUMERIC_8_3 = (8 << 16 | 3) + 4
_NUMERIC_5_1 = (5 << 16 | 1) + 4

#: Column type, and what it is without the OIDs; None: nothing but OID and modifier.
_COLUMNS: dict[str, str | None] = {
    "int": None,
    "numeric(12,2)": None,
    "int[]": "integer[1]",
    "text[][]": "text[2]",
    "numeric(5,1)[]": f"numeric:{_NUMERIC_5_1}[1]",
    "int2vector": None,
    "int4range": "range(integer)",
    "tstzmultirange": "multirange(range(timestamp with time zone))",
    "mood": "enum(sad, so so, happy)",
    "mood[]": "enum(sad, so so, happy)[1]",
    "price": f"domain(domain(numeric:{_NUMERIC_8_3}))",
    "prices": f"domain(domain(domain(numeric:{_NUMERIC_8_3}))[1])",
    "pair[]": (
        f"(first (at date, matrix numeric:{_NUMERIC_5_1}[2]), moods enum(sad, so so, happy)[1])[1]"
    ),
    "span": f"range(domain(domain(numeric:{_NUMERIC_8_3})))",
    "other": "(id integer, note text)",
}


def _shown(type_: PgType | None) -> str | None:
    match type_:
        case None:
            return None
        case Scalar():
            by = f" by {type_.extension}" if type_.extension else ""
            return type_.name + by + (f":{type_.modifier}" if type_.modifier != -1 else "")
        case Array():
            return f"{_shown(type_.element)}[{type_.dimensions}]"
        case Range():
            return f"range({_shown(type_.subtype)})"
        case Multirange():
            return f"multirange({_shown(type_.range)})"
        case Composite():
            return f"({', '.join(map(_attribute, type_.attributes))})"
        case Enum():
            return f"enum({', '.join(type_.labels)})"
        case Domain():
            return f"domain({_shown(type_.base)})"


def _attribute(attribute: Attribute) -> str:
    return f"{attribute.name} {_shown(attribute.type)}"


def test_the_catalog_shows_what_types_are_built_from(
    database: Database, make_config: MakeConfig
) -> None:
    columns = ", ".join(f"c{place} {name}" for place, name in enumerate(_COLUMNS))
    database.execute(
        *_TYPES,
        f"create table t (id int primary key, {columns})",
        f"create publication {PUBLICATION} for table t",
    )
    with database.connect() as connection:
        (table,) = fetch_published_tables(connection, PUBLICATION)
    described = table.schema.columns[1:]

    assert [_shown(column.type) for column in described] == list(_COLUMNS.values())

    # A message brings OIDs, of a table that is gone by now perhaps.
    relation = Relation(
        99,
        "public",
        "gone",
        "d",
        tuple(
            RelationColumn(column.name, column.type_oid, _sent_modifier(name), is_identity=False)
            for column, name in zip(described, _COLUMNS, strict=True)
        ),
    )
    config = make_config(database)
    with closing(SourceControl(config.source, application_name="test")) as control:
        tracker = SchemaTracker(
            MemoryStore(), lambda table_id: None, lambda oids: ask_types(control, oids)
        )
        resolved = tracker.resolve(relation, Lsn(100)).columns
    for column, sent in zip(described, resolved, strict=True):
        assert sent.effective_type_oid == column.effective_type_oid
        assert sent.type_modifier == column.type_modifier
        # The dimensions of a column aren't sent; those of what it is built of are known.
        assert _shown(sent.type) == (
            "text[1]" if _shown(column.type) == "text[2]" else _shown(column.type)
        )


def _sent_modifier(name: str) -> int:
    return {"numeric(12,2)": (12 << 16 | 2) + 4, "numeric(5,1)[]": _NUMERIC_5_1}.get(name, -1)


def test_types_of_an_extension_name_it(database: Database) -> None:
    if not database.query("select from pg_available_extensions where name = 'hstore'"):
        pytest.skip("this server has no hstore")
    database.execute("create extension hstore")
    with database.connect() as connection:
        row = connection.execute(
            "select 'hstore'::regtype::oid, 'hstore[]'::regtype::oid"
        ).fetchone()
        assert row is not None
        types = fetch_types(connection, row)

    assert _shown(types.type_of(row[0])) == "hstore by hstore"
    assert _shown(types.type_of(row[1])) == "hstore by hstore[1]"
    assert types.type_of(1) is None
