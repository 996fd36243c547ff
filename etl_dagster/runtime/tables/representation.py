"""Which types a table's columns have at the destination, as far as that is a choice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import keep_shapes, reason_of_shapes
from etl_dagster.shaping.mistakes import key_mistakes
from etl_dagster.shaping.rules import shaped
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.types import TypeCatalog, unknown_types
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.forms import (
    form_of,
    has_any_numeric,
    is_always_held,
    labels_of,
    may_be_odd,
    may_have_own_type,
)
from etl_dagster.values.text import parse
from etl_dagster.values.types import PgType, Scalar, is_users_own, without_domains


def chosen(schema: TableSchema, config: PipelineConfig) -> TableSchema:
    """The schema with the choices of the configuration, for a new copy or a new column.

    A column of the key stays text: rows are found by it, in every destination.
    """
    columns = (_chosen(column, schema, config) for column in schema.columns)
    mode = config.mode_of(schema.name)
    made = shaped(replace(schema, columns=tuple(columns), mode=mode), config)
    return replace(made, columns=tuple(_cast(column, made, config) for column in made.columns))


def _cast(column: ColumnSchema, schema: TableSchema, config: PipelineConfig) -> ColumnSchema:
    """A column that is cast, whose odd values are those of the type that it is cast to."""
    if column.shape is None or column.shape.cast is None:
        return column
    policy = config.odd_policy(schema.name, column.name)
    return replace(column, quarantine=policy == "quarantine" and may_be_odd(column))


def given(config: PipelineConfig, destination: Destination) -> PipelineConfig:
    """The configuration of a pipeline with this destination, which it need not name."""
    section = getattr(destination, "config_model", None)
    has_own_types = bool(getattr(section, "has_own_types", False))
    reads_text = bool(getattr(section, "reads_text", False))
    return config.given_destination(
        destination.name,
        has_own_types=has_own_types,
        reads_text=reads_text,
        makes_types=bool(getattr(destination, "makes_types", False)),
    )


def _chosen(column: ColumnSchema, schema: TableSchema, config: PipelineConfig) -> ColumnSchema:
    if config.reads_text:
        column = replace(column, nested="text")
        is_made = config.makes_types and column.type is not None and is_users_own(column.type)
        return replace(column, as_text=is_made or may_be_odd(column), own_type=is_made)
    in_key = column.name in schema.key_columns
    nested = config.nested_of(schema.name, column.name)
    if column.type is not None:
        column = replace(column, nested="text" if in_key else nested)
    if has_any_numeric(column) and not in_key:
        column = replace(column, numeric=config.numeric_of(schema.name, column.name))
    if config.has_own_types and may_have_own_type(column, in_key=in_key):
        is_asked_for = labels_of(column) is None or nested == "native"
        column = replace(column, own_type=is_asked_for)
    policy = config.odd_policy(schema.name, column.name)
    if policy == "text" and may_be_odd(column):
        return replace(column, nested="text", as_text=True, own_type=False)
    return replace(column, quarantine=policy == "quarantine" and not is_always_held(column))


def chosen_tables(tables: Iterable[PublishedTable], config: PipelineConfig) -> list[PublishedTable]:
    """Published tables, each with the schema that a new copy of it has."""
    return [replace(table, schema=chosen(table.schema, config)) for table in tables]


def keep_choices(schema: TableSchema, known: TableSchema | None) -> TableSchema:
    """The schema, of which columns that are as in the known one keep what is known of their type.

    Types may change where nothing in the stream tells (an attribute added to a composite), and so
    may the configuration; but what the destination has stays as it was made until the table is
    copied again.
    """
    kept = {column.name: column for column in _kept(schema, known)}
    columns = (kept.get(column.name, column) for column in schema.columns)
    mode = schema.mode if known is None else known.mode
    return keep_shapes(replace(schema, columns=tuple(columns), mode=mode), known)


def held_otherwise(today: TableSchema, known: TableSchema, config: PipelineConfig) -> list[str]:
    """Columns whose values the configuration wants otherwise than the destination has them."""
    kept = {column.name: column for column in _kept(today, known)}
    return [
        column.name
        for column in chosen(today, config).columns
        if column.name in kept
        and column.shape == kept[column.name].shape
        and (_held(column), column.quarantine)
        != (_held(kept[column.name]), kept[column.name].quarantine)
    ]


def reason_of_columns(schema: TableSchema, known: TableSchema) -> str | None:
    """Why the table must be copied again for its columns as they are now, if so."""
    return (
        _reason_of_hidden_key(schema)
        or reason_of_shapes(schema, known)
        or _reason_of_key(schema, known)
        or _reason_of_defaults(schema, known)
    )


def _reason_of_hidden_key(schema: TableSchema) -> str | None:
    """A copy of such a table is refused, with what to do."""
    return next(iter(key_mistakes(schema)), None)


def _reason_of_defaults(schema: TableSchema, known: TableSchema) -> str | None:
    """An entry is kept of each value that isn't held, and a default is one of every row."""
    before = {column.attnum or column.name for column in known.columns}
    for column in schema.columns:
        if column.missing_value is None or (column.attnum or column.name) in before:
            continue
        if parse(column, pa.array([column.missing_value], pa.string())).odd is not None:
            return f"its new column {column.name} has a default that its type can't hold"
    return None


def _reason_of_key(schema: TableSchema, known: TableSchema) -> str | None:
    """Why the table must be copied again for its new key, if so.

    In a key, values are held as text. Else two numbers may be one double, and two arrays with
    parts that can't be held, one list.
    """
    before = {c.attnum or c.name for c in known.columns if c.name in known.key_columns}
    added = [
        column
        for column in schema.columns
        if column.name in schema.key_columns and (column.attnum or column.name) not in before
    ]
    unfit = [c.name for c in added if _held(c) != _held(_as_in_key(c))]
    if not unfit:
        return None
    return f"{', '.join(unfit)} of its new key must be text at the destination"


def _as_in_key(column: ColumnSchema) -> ColumnSchema:
    column = replace(column, nested="text", numeric="text")
    own_type = column.own_type and may_have_own_type(column, in_key=True)
    return replace(column, own_type=own_type)


def _held(column: ColumnSchema) -> tuple[pa.DataType, str | None, bool]:
    form = form_of(column)
    # The labels of an enum are texts however they are encoded.
    arrow = form.arrow
    plain = arrow.value_type if isinstance(arrow, pa.DictionaryType) else arrow
    return plain, form.duckdb, column.own_type


def _kept(schema: TableSchema, known: TableSchema | None) -> Iterable[ColumnSchema]:
    before = {} if known is None else {c.attnum or c.name: c for c in known.columns}
    for column in schema.columns:
        old = before.get(column.attnum or column.name)
        if old is not None and _has_same_type(old, column):
            yield replace(
                column,
                type=old.type,
                nested=old.nested,
                as_text=old.as_text,
                numeric=old.numeric,
                own_type=old.own_type,
                quarantine=old.quarantine,
                shape=old.shape,
            )


def _has_same_type(old: ColumnSchema, new: ColumnSchema) -> bool:
    # A domain's own modifier is in the type; not every message knows it.
    is_domain = old.base_type_oid not in (0, old.type_oid)
    return old.type_oid == new.type_oid and (is_domain or old.type_modifier == new.type_modifier)


def undescribed(schema: TableSchema, known: TableSchema | None) -> set[int]:
    """The OIDs of types that the catalog must be asked about."""
    kept = {column.name for column in _kept(schema, known)}
    return unknown_types(
        column.type_oid
        for column in schema.columns
        if column.type is None and column.name not in kept
    )


def describe(schema: TableSchema, types: TypeCatalog, asked: Collection[int]) -> TableSchema:
    """The schema with what the catalog says of the types that it was asked about."""
    return replace(
        schema, columns=tuple(_described(column, types, asked) for column in schema.columns)
    )


def _described(column: ColumnSchema, types: TypeCatalog, asked: Collection[int]) -> ColumnSchema:
    if column.type is not None or column.type_oid not in asked:
        return column
    type_ = types.type_of(column.type_oid, column.type_modifier)
    return column if type_ is None else _with_type(column, type_)


def _with_type(column: ColumnSchema, type_: PgType) -> ColumnSchema:
    base = without_domains(type_)
    if base is type_:
        return replace(column, type=type_)
    modifier = base.modifier if isinstance(base, Scalar) else -1
    return replace(column, type=type_, base_type_oid=base.oid, type_modifier=modifier)
