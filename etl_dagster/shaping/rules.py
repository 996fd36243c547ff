"""Chooses how a table differs at the destination, by the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from etl_dagster.config import PipelineConfig, TableConfig
from etl_dagster.config.shape import MaskConfig
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.shape import AddedColumn, TableShape
from etl_dagster.shaping.columns import with_shape
from etl_dagster.shaping.conditions import Unreadable, columns_of, parse_condition
from etl_dagster.shaping.masks import salt_check
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.shapes import ColumnShape, Mask

if TYPE_CHECKING:
    from etl_dagster.values.shapes import CastTo


def shaped(
    schema: TableSchema, config: PipelineConfig, *, as_named: TableSchema | None = None
) -> TableSchema:
    """The schema with the shape that the configuration chooses.

    Args:
        as_named: the same table and columns under other names, by which the settings are found; by
            default under their own.
    """
    named = schema if as_named is None else as_named
    in_condition = _columns_in_condition(config.table(named.name))
    columns = tuple(
        with_shape(column, _column_shape(by.name, named.name, config, in_condition))
        for column, by in zip(schema.columns, named.columns, strict=True)
    )
    shape = _table_shape(named.name, config)
    is_hashed = any(c.shape and c.shape.mask and c.shape.mask.kind == "hash" for c in columns)
    if is_hashed and config.salt is not None:
        shape = replace(shape, salt_check=salt_check(config.salt.get_secret_value().encode()))
    if shape == TableShape(named.name) and all(column.shape is None for column in columns):
        return replace(schema, columns=columns, shape=None)
    return replace(schema, columns=columns, shape=shape)


def _columns_in_condition(settings: TableConfig) -> frozenset[str]:
    if settings.where is None:
        return frozenset()
    try:
        return frozenset(columns_of(parse_condition(settings.where)))
    except Unreadable:
        return frozenset()  # `mistakes` reports it


def _table_shape(table_name: str, config: PipelineConfig) -> TableShape:
    settings = config.table(table_name)
    target = None if settings.name is None else TableName.parse(settings.name)
    static = (_added(name, added.type, added.value) for name, added in settings.add.items())
    of_hook = (_added(name, type_, None) for name, type_ in settings.hook_adds.items())
    return TableShape(
        chosen_as=table_name,
        schema_name="" if target is None else target.schema_name,
        table_name="" if target is None else target.table_name,
        where=settings.where or "",
        added=tuple(column for column in (*static, *of_hook) if column is not None),
        hook=settings.hook or "",
    )


def _type_named(text: str) -> CastTo | None:
    # Imported here because it needs pyarrow, which most processes of Dagster don't load.
    from etl_dagster.values.read_as import type_named

    return type_named(text)


def _added(name: str, type_text: str, value: str | None) -> AddedColumn | None:
    """None if there is no such type, which `mistakes` reports."""
    of = _type_named(type_text)
    if of is None:
        return None
    return AddedColumn(name, of.type_oid, of.type_modifier, of.type_name, value)


def _column_shape(
    name: str, table_name: str, config: PipelineConfig, in_condition: Collection[str]
) -> ColumnShape | None:
    settings = config.column(table_name, name)
    left_out = is_left_out(config.table(table_name), name)
    mask = None if left_out or settings.mask is None else _mask(settings.mask)
    cast = None if left_out or mask or settings.cast is None else _type_named(settings.cast)
    is_asked = name in in_condition
    needs_values = not left_out and (mask is None or mask.kind in ("hash", "partial"))
    shape = ColumnShape(
        chosen_as=name,
        left_out=left_out,
        name=None if left_out else settings.name,
        mask=mask,
        cast=cast,
        in_condition=is_asked,
        is_read=needs_values or is_asked,
    )
    return None if shape == ColumnShape(chosen_as=name) else shape


def _mask(settings: MaskConfig) -> Mask | None:
    match settings.kind:
        case "off":
            return None
        case "null" | "hash":
            return Mask(settings.kind)
        case "constant":
            return Mask("constant", settings.constant)
        case "partial":
            return Mask("partial", settings.hidden, settings.show_first, settings.show_last)
    assert_never(settings.kind)


def is_left_out(settings: TableConfig, column_name: str) -> bool:
    """Whether the destination doesn't have the column."""
    if any(Pattern.of(text).matches(column_name) for text in settings.exclude):
        return True
    if settings.include is None:
        return False
    return not any(Pattern.of(text).matches(column_name) for text in settings.include)


# -- renamed tables and columns ------------------------------------------------------------------


def lost_by_name(known: TableSchema, schema: TableSchema, config: PipelineConfig) -> list[str]:
    """Columns that would no longer be hidden because of a new name in the source, as sentences.

    Args:
        known: the table as it was copied.
        schema: the same table as `shaped` returns it now.
    """
    by_old_names = shaped(schema, config, as_named=_as_named(known, schema))
    before = {_identity(column): column for column in known.columns}
    lost: list[str] = []
    for column, by_old in zip(schema.columns, by_old_names.columns, strict=True):
        old = before.get(_identity(column))
        if old is None or not _hides(old) or _hides(column) or not _hides(by_old):
            continue
        table = schema.name if known.shape is None else known.shape.chosen_as
        name = column.name if by_old.shape is None else by_old.shape.chosen_as
        lost.append(
            f"{schema.name}.{column.name} was {table}.{name} when it was copied, and the settings "
            "for that name hide its values: change them to the new name"
        )
    return lost


def _as_named(known: TableSchema, schema: TableSchema) -> TableSchema:
    """The table as it is now, under the names that it had when it was copied."""
    table = known.name if known.shape is None else known.shape.chosen_as
    name = TableName.parse(table)
    before = {_identity(column): column for column in known.columns}

    def old_name(column: ColumnSchema) -> str:
        old = before.get(_identity(column))
        if old is None:
            return column.name
        return old.name if old.shape is None else old.shape.chosen_as

    return replace(
        schema,
        schema_name=name.schema_name,
        table_name=name.table_name,
        columns=tuple(replace(column, name=old_name(column)) for column in schema.columns),
        shape=None,
    )


def _identity(column: ColumnSchema) -> int | str:
    return column.attnum or column.name


def _hides(column: ColumnSchema) -> bool:
    return column.shape is not None and column.shape.hides


def differs(known: TableSchema, schema: TableSchema, config: PipelineConfig) -> list[str]:
    """How the table at the destination differs from what the configuration chooses, for people.

    Each column with its settings, such as ``ssn (mask)``; never a value.

    A table or column that was renamed in the source doesn't differ if its shape is the one that the
    configuration chooses for its old name.

    Args:
        known: the table as it was copied.
        schema: the same table as `shaped` returns it now.
    """
    found = _differences(known, schema)
    if found:
        by_old_names = shaped(schema, config, as_named=_as_named(known, schema))
        found = found if _differences(known, by_old_names) else []
    return found


def _differences(known: TableSchema, schema: TableSchema) -> list[str]:
    before = {_identity(column): column for column in known.columns}
    found = []
    if settings := _table_settings(known.shape, schema.shape):
        found.append(f"the table itself ({', '.join(settings)})")
    for column in schema.columns:
        old = before.get(_identity(column))
        if old is not None and (settings := _column_settings(old.shape, column.shape)):
            found.append(f"{column.name} ({', '.join(settings)})")
    return found


def _table_settings(before: TableShape | None, now: TableShape | None) -> list[str]:
    """The settings in which two shapes of a table differ."""
    before, now = before or TableShape(""), now or TableShape("")
    differing = {
        "name": (before.schema_name, before.table_name) != (now.schema_name, now.table_name),
        "where": before.where != now.where,
        "add": before.added != now.added,
        "hook": before.hook != now.hook,
        "salt": before.salt_check != now.salt_check,
    }
    return [name for name, differs in differing.items() if differs]


def _column_settings(before: ColumnShape | None, now: ColumnShape | None) -> list[str]:
    """The settings in which two shapes of a column differ.

    Whether `where` names the column is not one of them: that is a setting of the table.
    """
    before, now = before or ColumnShape(""), now or ColumnShape("")
    if before.left_out != now.left_out:
        return ["left out" if now.left_out else "not left out"]
    differing = {
        "name": before.name != now.name,
        "mask": before.mask != now.mask,
        "cast": before.cast != now.cast,
    }
    return [name for name, differs in differing.items() if differs]
