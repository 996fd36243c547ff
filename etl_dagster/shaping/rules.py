"""How the configuration wants a table to differ at the destination."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from etl_dagster.config import PipelineConfig, TableConfig
from etl_dagster.config_text import suggest
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.shape import TableShape
from etl_dagster.shaping.columns import with_shape
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern, TablePattern
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.shapes import ColumnShape


def shaped(
    schema: TableSchema, config: PipelineConfig, *, as_named: TableSchema | None = None
) -> TableSchema:
    """The schema with what the configuration wants of it.

    Args:
        as_named: the same table and columns under the names to go by; by default their own.
    """
    named = schema if as_named is None else as_named
    columns = tuple(
        with_shape(column, _column_shape(column, by, named, config))
        for column, by in zip(schema.columns, named.columns, strict=True)
    )
    shape = _table_shape(named, config)
    if shape is None and any(column.shape is not None for column in columns):
        shape = TableShape(chosen_as=named.name)
    return replace(schema, columns=columns, shape=shape)


def _table_shape(named: TableSchema, config: PipelineConfig) -> TableShape | None:
    settings = config.table(named.name)
    target = None if settings.name is None else TableName.parse(settings.name)
    shape = TableShape(
        chosen_as=named.name,
        schema_name="" if target is None else target.schema_name,
        table_name="" if target is None else target.table_name,
    )
    return None if shape == TableShape(chosen_as=named.name) else shape


def _column_shape(
    column: ColumnSchema, by: ColumnSchema, named: TableSchema, config: PipelineConfig
) -> ColumnShape | None:
    settings = config.column(named.name, by.name)
    left_out = is_left_out(config.table(named.name), by.name)
    shape = ColumnShape(
        chosen_as=by.name,
        left_out=left_out,
        name=None if left_out else settings.name,
        is_read=not left_out,
    )
    return None if shape == ColumnShape(chosen_as=by.name) else shape


def is_left_out(settings: TableConfig, column_name: str) -> bool:
    """Whether the destination doesn't have the column."""
    if any(Pattern.of(text).matches(column_name) for text in settings.exclude):
        return True
    if settings.include is None:
        return False
    return not any(Pattern.of(text).matches(column_name) for text in settings.include)


# -- what can't be done ------------------------------------------------------------------------


def mistakes(schema: TableSchema, config: PipelineConfig) -> list[str]:
    """Why the configuration can't be followed for a table, a sentence for each reason.

    Args:
        schema: as `shaped` returns it.
    """
    return [
        *_ambiguities(schema, config),
        *_unknown_columns(schema, config),
        *key_mistakes(schema),
        *_name_mistakes(schema),
    ]


def _ambiguities(schema: TableSchema, config: PipelineConfig) -> Iterator[str]:
    found = [(TablePattern.parse(text), text) for text, _ in config.matching(schema.name)]
    for (one, first), (other, second) in pairwise(found):
        if one.rank == other.rank:
            yield (
                f"both tables.{first} and tables.{second} concern {schema.name}, and neither says "
                "more exactly which tables are meant"
            )


def _unknown_columns(schema: TableSchema, config: PipelineConfig) -> Iterator[str]:
    """What is said of columns by name, in settings for this table alone."""
    for text, settings in config.matching(schema.name):
        if TablePattern.parse(text).is_exact:
            for name in named_columns(settings):
                if name not in schema.column_names:
                    yield unknown_column(schema, name)


def unknown_column(schema: TableSchema, name: str) -> str:
    """The sentence about a column that settings name and the table has not."""
    return f"{schema.name} has no column {name!r}{suggest(name, schema.column_names, [])}"


def named_columns(settings: TableConfig) -> Iterator[str]:
    """The columns that settings of a table's shape name by their whole name."""
    shaping = (name for name, each in settings.columns.items() if each.is_shaping)
    for text in dict.fromkeys([*(settings.include or ()), *settings.exclude, *shaping]):
        if Pattern.of(text).is_exact:
            yield text


def key_mistakes(schema: TableSchema) -> Iterator[str]:
    """Columns of the key that are not what a row can be found by."""
    shapes = {column.name: column.shape for column in schema.columns}
    for name in schema.key_columns:
        shape = shapes[name]
        if shape is not None and shape.left_out:
            yield (
                f"{schema.name}.{name} is part of the key, by which changes find their rows, and "
                "can't be left out; mask it with `hash`"
            )


def _name_mistakes(schema: TableSchema) -> Iterator[str]:
    known: dict[str, str] = {}
    for column in schema.columns:
        if column.shape is not None and column.shape.left_out:
            continue
        target = (column.shape and column.shape.name) or column.name
        if target in known:
            yield (
                f"the columns {known[target]} and {column.name} of {schema.name} would both be "
                f"called {target} at the destination"
            )
        known[target] = column.name


def collisions(schemas: Iterable[TableSchema]) -> Iterator[str]:
    """Tables of which several would have one name at the destination, a sentence for each two.

    Of tables that are one to the destination alone, it tells itself (`ChecksNames`).
    """
    known: dict[TableName, TableSchema] = {}
    for schema in schemas:
        other = known.setdefault(schema.target, schema)
        if other is not schema:
            yield (
                f"{other.name} and {schema.name} would both be called {schema.target} at the "
                "destination"
            )


def unmatched(schemas: Sequence[TableSchema], config: PipelineConfig) -> Iterator[str]:
    """Tables and columns that settings of shapes name, and that are not among the published ones.

    A typo there would show what was to be hidden.
    """
    tables = {schema.name: schema for schema in schemas}
    for text, settings in config.tables.items():
        if not settings.is_shaping:
            continue
        pattern = TablePattern.parse(text)
        meant = [s for s in schemas if pattern.matches(TableName(s.schema_name, s.table_name))]
        if not meant:
            yield (
                f"tables.{text} shapes no table: none of the publication has such a name"
                + suggest(text, list(tables), [])
            )
        elif not pattern.is_exact:
            known = list(dict.fromkeys(name for schema in meant for name in schema.column_names))
            for name in named_columns(settings):
                if name not in known:
                    yield f"tables.{text}: none of its tables has a column {name!r}" + suggest(
                        name, known, []
                    )


# -- what names have to do with it -------------------------------------------------------------


def lost_by_name(known: TableSchema, schema: TableSchema, config: PipelineConfig) -> list[str]:
    """What the configuration hid and would hide no more because of a new name in the source.

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
            f"{schema.name}.{column.name} was {table}.{name} when it was copied, and by that name "
            "its values are hidden: name it as it is called now"
        )
    return lost


def _as_named(known: TableSchema, schema: TableSchema) -> TableSchema:
    """The table of today under the names that it had when it was copied."""
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
    """In what the table at the destination differs from what the configuration wants, for people.

    A table or column that has another name in the source by now, and is what the configuration
    wants of it by its name before, doesn't differ.

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
    if _comparable(known.shape) != _comparable(schema.shape):
        found.append("the table's own settings")
    found += [
        column.name
        for column in schema.columns
        if (old := before.get(_identity(column))) is not None
        and _comparable_column(old.shape) != _comparable_column(column.shape)
    ]
    return found


def _comparable(shape: TableShape | None) -> TableShape:
    return replace(shape or TableShape(""), chosen_as="")


def _comparable_column(shape: ColumnShape | None) -> ColumnShape:
    return replace(shape or ColumnShape(""), chosen_as="", is_read=True)
