"""Values of every type and nesting: copy, stream, destination and Postgres agree."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, get_args

import duckdb
import jsonschema
import numpy as np
import psycopg
import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb.exact import exact
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.duckdb.tables import readable
from etl_dagster.destinations.http import load_json_schema, row_json_schema
from etl_dagster.destinations.http.config import Format
from etl_dagster.destinations.http.payload import rows_bodies
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table
from etl_dagster.model.events import ChunkId, CopiedRows, TableChanges, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.source.connection import connect
from etl_dagster.values import oids
from etl_dagster.values.adbc import text_expression
from etl_dagster.values.forms import form_of
from etl_dagster.values.json import json_reader, json_writer
from etl_dagster.values.python import to_objects
from etl_dagster.values.registry import REGISTRY
from tests.support.both_ways import changes_of_stream, rows_of_copy
from tests.support.database import PUBLICATION, Database
from tests.support.every_value import create_values, has_xml, value_of
from tests.support.hostile import HOSTILE
from tests.support.spelling import spelled

_SLOT = "values"
_ROWS = 24
FORMATS: tuple[Format, ...] = get_args(Format)
SEED = int(os.environ.get("RANDOM_VALUES_SEED", "1"))


def test_every_value_of_every_type_is_the_same_everywhere(
    database: Database, make_config: Callable[..., PipelineConfig]
) -> None:
    """One table with a column for each type, and one for arrays of each; no setting matters."""
    config, random = make_config(database), Random(SEED)
    kinds = create_values(database)
    with database.connect() as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [_SLOT])
        for number in range(_ROWS):
            values = ", ".join(value_of(kind, number, random) for kind in kinds)
            connection.execute(f"insert into v values ({number}, {values})")
    with connect(config.source, application_name="test") as source:
        (table,) = fetch_published_tables(source, PUBLICATION)
        printed = _printed(source, table.schema)
    without_xml = {oids.XML} if not has_xml(database) else set()
    with database.connect() as connection:  # of every session from now on, the walsender's too
        for setting, value in HOSTILE.items():
            connection.execute(f"alter database {database.name} set {setting} = '{value}'")
    assert REGISTRY.keys() - {column.type_oid for column in table.schema.columns} == without_xml

    found = []
    for nested, numeric in (
        ("text", "text"),
        ("native", "text"),
        ("native", "decimal(20,4)"),
        ("json", "double"),
    ):
        choices = {"nested": nested, "numeric": numeric}
        schema = chosen(table.schema, config.model_copy(update=choices))
        copied, odd = _all_by_id(rows_of_copy(config, schema))
        streamed, odd_streamed = _all_by_id(changes_of_stream(config, _SLOT, schema, _ROWS))
        assert copied.schema == streamed.schema == schema.arrow_schema
        names = {f"c{place}": kind.name for place, kind in enumerate(kinds)}
        for name in schema.column_names:
            if not _is_same(copied[name], streamed[name]):
                found.append((nested, names[name], "copy and stream differ"))
        assert odd == odd_streamed
        for format in FORMATS if nested == "text" else FORMATS[-1:]:
            found += _other_in_bodies(schema, copied, format)
        if nested == "json":
            continue  # written from what is native
        differing = []
        if numeric == "text":  # a decimal prints all of its digits
            with connect(config.source, application_name="test") as source:
                differing = _differing(source, schema, copied, odd, printed)
        differing += _differing_in_duckdb(schema, copied) + _differing_in_json(schema, copied)
        found += [(nested, names.get(name, name), *what) for name, *what in differing]
    assert not found, "\n".join(map(str, found))


Odd = dict[tuple[str, int], str]


def _all_by_id(parts: Sequence[CopiedRows | TableChanges]) -> tuple[pa.RecordBatch, Odd]:
    odd: Odd = {}
    for part in parts:
        odd |= _odd_by_id(part.rows, part.odd)
    return _by_id([part.rows for part in parts]), odd


def _odd_by_id(rows: pa.RecordBatch, odd: Any) -> Odd:
    ids = rows["id"].to_pylist()
    return {
        (name, ids[place]): text
        for name, each in odd.items()
        for place, text in zip(each.places.tolist(), each.texts.to_pylist(), strict=True)
    }


def _by_id(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """A scan begins where another one is, so that a copy may begin in the middle of the table."""
    (rows,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    order: Any = pa.array(np.argsort(rows["id"].to_numpy()))
    return rows.take(order)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arrays have the same bits; also of NaN, and of both zeros."""
    if one.type != other.type or one.is_null().to_pylist() != other.is_null().to_pylist():
        return False
    kind = one.type
    if pa.types.is_list(kind):
        lengths = [array.value_lengths().to_pylist() for array in (one, other)]
        return lengths[0] == lengths[1] and _is_same(one.flatten(), other.flatten())
    if pa.types.is_struct(kind):
        return all(map(_is_same, one.flatten(), other.flatten()))
    if pa.types.is_floating(kind):
        bits = pa.int32() if kind == pa.float32() else pa.int64()
        one, other = one.drop_null().view(bits), other.drop_null().view(bits)
        return bool(one.equals(other))
    return list(map(repr, to_objects(one))) == list(map(repr, to_objects(other)))


Printed = dict[str, dict[int, str]]


def _printed(source: psycopg.Connection[Any], schema: TableSchema) -> Printed:
    """What Postgres prints of each column, by id."""
    found: Printed = {}
    for column in schema.columns:
        output = text_expression(column).format(f'"{column.name}"')
        query = f"select id, {output} from public.v order by id"
        found[column.name] = dict(source.execute(query).fetchall())
    return found


def _differing(
    source: psycopg.Connection[Any],
    schema: TableSchema,
    rows: pa.RecordBatch,
    odd: Odd,
    texts: Printed,
) -> list[tuple[Any, ...]]:
    """Values that Postgres reads differently than it printed them, or that are null but not odd."""
    found: list[tuple[Any, ...]] = []
    for column in schema.columns:
        expected = texts[column.name]
        array = rows[column.name]
        nulls = array.is_null().to_pylist()
        printed = form_of(column).print(array)
        same = []
        for id_, is_null, text in zip(expected, nulls, printed, strict=True):
            kept = odd.get((column.name, id_))
            if kept is not None:
                is_there = not is_null and not form_of(column).parts
                if is_there or kept != expected[id_]:
                    found.append((column.name, "odd", kept[:200], expected[id_]))
            elif is_null:
                if expected[id_] is not None:
                    found.append((column.name, "null", expected[id_][:200]))
            else:
                same.append((text, expected[id_]))
        found += [(column.name, *pair) for pair in _read_otherwise(source, column, same)]
    return found


def _read_otherwise(
    source: psycopg.Connection[Any], column: Any, pairs: list[tuple[Any, Any]]
) -> list[tuple[Any, ...]]:
    """Which of the first texts aren't printed as the second when Postgres has read them."""
    if not pairs:
        return []
    output = text_expression(column).format("v").replace("%", "%%")
    # Not cast from a column of texts: for some types, that differs from what their input reads.
    values = ", ".join([f"(%s::{column.type_name}, %s::text)"] * len(pairs))
    query = (
        f"select left(e, 300), left({output}, 300) from (values {values}) x (v, e) "
        f"where {output} is distinct from e"
    )
    texts = [text for pair in pairs for text in pair]
    return source.execute(query, texts).fetchall()


def _differing_in_duckdb(schema: TableSchema, rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
    names = list(schema.column_names)
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        session = DuckDBSession(connection)
        target = Target.of(session.dialect, schema)
        create_table(session, target)
        session.run(insert(target, rows))
        kept = exact(connection.sql("select * from public.v order by id")).to_arrow_table()
    (batch,) = kept.combine_chunks().to_batches()
    found: list[tuple[Any, ...]] = []
    for name in names:
        array = readable(rows.select([name]))[name]
        for one, other in zip(to_objects(array), to_objects(batch[name]), strict=True):
            one = spelled(one, target.types[name])
            if _plain(one) != _plain(other):
                found.append(
                    (
                        name,
                        target.types[name],
                        str(array.type),
                        str(batch[name].type),
                        repr(one)[:200],
                        repr(other)[:200],
                    )
                )
    return found


def _differing_in_json(schema: TableSchema, rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for column in schema.columns:
        write, read = json_writer(column), json_reader(column)
        for value in to_objects(rows[column.name]):
            if value is None:
                continue
            text = json.dumps(value if write is None else write(value), allow_nan=False)
            back = json.loads(text)
            back = back if read is None else read(back)
            if _plain(back) != _plain(value):
                found.append((column.name, text[:200], repr(value)[:200], repr(back)[:200]))
    return found


def _other_in_bodies(
    schema: TableSchema, rows: pa.RecordBatch, format: Format
) -> list[tuple[Any, ...]]:
    """Values that an HTTP destination sends in another form than it describes."""
    bodies = jsonschema.Draft202012Validator(load_json_schema(format))
    chunk = TableRows("copy", [rows], ChunkId("copy", 0))
    errors: list[jsonschema.ValidationError] = []
    for sent in rows_bodies("shop", schema, chunk, "a", 10**6, format=format):
        body = json.loads(sent.content)
        errors += bodies.iter_errors(body)
        if format == 2:
            of_table = jsonschema.Draft202012Validator(row_json_schema(body["table"]))
            errors += (error for row in body["rows"] for error in of_table.iter_errors(row))
    return [(format, *error.path, error.message[:200]) for error in errors]


def _plain(value: Any) -> str:
    """A form that tells -0.0 from 0.0, in which NaN equals itself. UTC has more than one name."""
    if isinstance(value, dict):
        return repr({key: _plain(member) for key, member in value.items()})
    if isinstance(value, list):
        return repr([_plain(element) for element in value])
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    return repr(value)
