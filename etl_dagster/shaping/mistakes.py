"""Why settings can't be applied: checked before anything is created, and before a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from etl_dagster.config import PipelineConfig, TableConfig
from etl_dagster.config.text import suggest
from etl_dagster.errors import HookFailed
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import added_column, lacks_whole_rows
from etl_dagster.shaping.conditions import Unreadable
from etl_dagster.shaping.filtering import RowFilter
from etl_dagster.shaping.hooks import load_hook
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern, TablePattern
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.read_as import as_printed, known_types, type_named
from etl_dagster.values.shapes import ColumnShape
from etl_dagster.values.text import parse


def mistakes(schema: TableSchema, config: PipelineConfig) -> list[str]:
    """Why the settings can't be applied to a table, a sentence for each reason.

    Args:
        schema: as `shaped` returns it.
    """
    return [
        *_ambiguities(schema, config),
        *_unknown_columns(schema, config),
        *key_mistakes(schema),
        *_name_mistakes(schema),
        *_value_mistakes(schema, config),
    ]


def _ambiguities(schema: TableSchema, config: PipelineConfig) -> Iterator[str]:
    found = [(TablePattern.parse(text), text) for text, _ in config.matching(schema.name)]
    for (one, first), (other, second) in pairwise(found):
        if one.rank == other.rank:
            yield (
                f"both tables.{first} and tables.{second} match {schema.name}, and neither is more "
                "specific"
            )


def _unknown_columns(schema: TableSchema, config: PipelineConfig) -> Iterator[str]:
    """Columns that settings for this table alone name, and that it does not have."""
    for text, settings in config.matching(schema.name):
        if TablePattern.parse(text).is_exact:
            for name in named_columns(settings):
                if name not in schema.column_names:
                    yield unknown_column(schema, name)


def unknown_column(schema: TableSchema, name: str) -> str:
    """The sentence about a column that settings name and the table does not have."""
    return f"{schema.name} has no column {name!r}{suggest(name, schema.column_names, [])}"


def named_columns(settings: TableConfig) -> Iterator[str]:
    """The columns that shaping settings of a table name exactly, not by a pattern."""
    shaping = (name for name, each in settings.columns.items() if each.is_shaping)
    for text in dict.fromkeys([*(settings.include or ()), *settings.exclude, *shaping]):
        if Pattern.of(text).is_exact:
            yield text


def key_mistakes(schema: TableSchema) -> Iterator[str]:
    """Columns of the key that are shaped so that rows can't be found by it."""
    shapes = {column.name: column.shape for column in schema.columns}
    for name in schema.key_columns:
        shape = shapes[name]
        done = _done_to_values(shape)
        if done:
            yield (
                f"{schema.name}.{name} is part of the key, by which changes find their rows, so it "
                f"can't be {done}; `mask: hash` is possible, because different keys stay different"
            )


def _done_to_values(shape: ColumnShape | None) -> str:
    """What a shape does that may make two values equal, as a participle; empty: nothing."""
    if shape is None or (shape.mask is not None and shape.mask.kind == "hash"):
        return ""
    if shape.left_out:
        return "left out"
    if shape.mask is not None:
        return f"masked by {shape.mask.kind}"
    return "cast" if shape.cast is not None else ""


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
    for added in () if schema.shape is None else schema.shape.added:
        if added.name in known:
            yield f"{schema.name} would have two columns {added.name} at the destination"
        known[added.name] = added.name


def _value_mistakes(schema: TableSchema, config: PipelineConfig) -> Iterator[str]:
    """Types, constants, the condition and the hook."""
    settings = config.table(schema.name)
    for column in schema.columns:
        cast = config.column(schema.name, column.name).cast
        if cast is not None and type_named(cast) is None:
            yield _unknown_type(f"{schema.name}.{column.name}", cast)
        mask = None if column.shape is None else column.shape.mask
        if mask is not None and mask.kind == "constant" and not _reads(column, mask.text):
            yield (
                f"the constant for {schema.name}.{column.name} is not a value of type "
                f"{column.type_name}"
            )
    types = {name: added.type for name, added in settings.add.items()} | settings.hook_adds
    for name, type_text in types.items():
        if type_named(type_text) is None:
            yield _unknown_type(f"the added column {name} of {schema.name}", type_text)
    for added in () if schema.shape is None else schema.shape.added:
        if added.value is not None and not _reads(added_column(added), added.value):
            yield (
                f"the value of {added.name} for {schema.name} is not a value of type "
                f"{added.type_name}"
            )
    if settings.hook_adds and not settings.hook:
        yield f"{schema.name} has hook_adds, but no hook"
    if lacks_whole_rows(schema):
        yield (
            f"{schema.name} is kept in mode {schema.mode}, and its condition or hook needs the "
            "values that an update doesn't change: have them sent with ALTER TABLE ... REPLICA "
            "IDENTITY FULL"
        )
    if settings.where is not None:
        try:
            RowFilter(settings.where, schema)
        except Unreadable as error:
            yield f"`where` of {schema.name} {error}"
    if settings.hook is not None:
        try:
            load_hook(settings.hook)
        except HookFailed as error:
            yield error.reason


def _unknown_type(of: str, type_text: str) -> str:
    return f"{of} can't be of type {type_text!r}; known are {known_types()}"


def _reads(column: ColumnSchema, text: str) -> bool:
    """Whether the text is a value of the column's type."""
    import pyarrow as pa

    plain = replace(column, shape=None)
    printed = as_printed(plain, text)
    try:
        parsed = parse(plain, pa.array([printed], pa.string()))
    except (pa.ArrowException, ValueError):
        return False
    return parsed.odd is None and not parsed.array.null_count


def collisions(schemas: Iterable[TableSchema]) -> Iterator[str]:
    """Tables that would have the same name at the destination, a sentence for each two.

    Names that only the destination takes for the same, it reports itself (`ChecksNames`).
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
    """Tables and columns that shaping settings name, but that are not published.

    A typo there would show values that were to be hidden.
    """
    tables = {schema.name: schema for schema in schemas}
    for text, settings in config.tables.items():
        if not settings.is_shaping:
            continue
        pattern = TablePattern.parse(text)
        meant = [s for s in schemas if pattern.matches(TableName(s.schema_name, s.table_name))]
        if not meant:
            yield (
                f"tables.{text} matches no table of the publication"
                + suggest(text, list(tables), [])
            )
        elif not pattern.is_exact:
            known = list(dict.fromkeys(name for schema in meant for name in schema.column_names))
            for name in named_columns(settings):
                if name not in known:
                    yield f"tables.{text}: none of its tables has a column {name!r}" + suggest(
                        name, known, []
                    )
