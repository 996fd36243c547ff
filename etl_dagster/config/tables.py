"""Settings of single tables and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from etl_dagster.config.section import Section
from etl_dagster.config.shape import (
    AddSetting,
    FunctionName,
    MaskSetting,
    TargetName,
    TypeName,
    require_names,
)
from etl_dagster.config.text import parse_numeric

#: What happens to a value that its column's type can't hold.
OddPolicy: TypeAlias = Literal["null", "clamp", "text", "fail", "quarantine"]
#: In YAML, null without quotes is None.
OrNull = BeforeValidator(lambda value: "null" if value is None else value)
#: How tables are kept. As in `etl_dagster.model.modes`, which is not imported to read a file.
TableMode: TypeAlias = Literal["mirror", "soft_delete", "append", "scd2"]
#: How values with parts are held; see `etl_dagster.values.columns`.
Nested: TypeAlias = Literal["native", "json", "text"]
#: How a numeric without precision is held; see `etl_dagster.values.columns`.
Numeric: TypeAlias = Annotated[str, AfterValidator(parse_numeric)]


class _MergedSection(Section):
    """A section of which several may match one table; a setting in one may override another's."""

    #: Settings for which null is a value: in YAML, null without quotes is None.
    _null_is_a_value: ClassVar[tuple[str, ...]] = ("odd_values",)

    @model_validator(mode="before")
    @classmethod
    def _null_is_null(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        nulls = [key for key in cls._null_is_a_value if key in values and values[key] is None]
        return {**values, **dict.fromkeys(nulls, "null")}

    @model_serializer(mode="wrap")
    def _as_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only what was set: read again, a default would override a setting elsewhere."""
        values: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        unset = {fields[name].alias or name for name in fields.keys() - self.given.keys()}
        return {key: value for key, value in values.items() if key not in unset}

    @property
    def given(self) -> dict[str, Any]:
        """What was set, by field name."""
        values = ((name, getattr(self, name)) for name in self.model_fields_set)
        return {name: value for name, value in values if value is not None}


class ColumnConfig(_MergedSection):
    """Settings of one column, or of all whose names match a pattern."""

    _null_is_a_value = ("odd_values", "mask")

    nested: Nested | None = Field(None, description="As for the pipeline, for this column.")
    odd_values: OddPolicy | None = Field(None, description="As for the table, for this column.")
    numeric: Numeric | None = Field(None, description="As for the pipeline, for this column.")
    name: str | None = Field(None, min_length=1, description="The name at the destination.")
    cast: TypeName | None = Field(
        None, description="Another type for the values, such as `text` or `bigint`."
    )
    mask: MaskSetting | None = Field(
        None, description="What replaces the values, which the destination never gets."
    )

    @property
    def is_shaping(self) -> bool:
        """Whether these settings change the column at the destination."""
        return (self.name, self.cast, self.mask) != (None, None, None)


class TableConfig(_MergedSection):
    """Settings of one table, or of all whose names match a pattern."""

    mode: TableMode | None = Field(None, description="As for the pipeline, for this table.")
    odd_values: OddPolicy | None = Field(None, description="As for the pipeline, for this table.")
    copy_rows: bool = Field(True, alias="copy", description="False streams from now on only.")
    partitions_removed: Literal["keep", "delete"] | None = Field(
        None, description="As for the pipeline, for this table."
    )
    name: TargetName | None = Field(
        None,
        description="Schema and table at the destination, such as `raw_{schema}.{table}`.",
    )
    include: list[str] | None = Field(
        None, description="The columns that the destination has, or patterns; by default all."
    )
    exclude: list[str] = Field([], description="Columns to leave out, or patterns.")
    columns: dict[str, ColumnConfig] = Field(
        {}, description="Settings by column name, or by pattern."
    )
    where: str | None = Field(
        None, description="A condition as in SQL; the destination has only rows that meet it."
    )
    add: dict[str, AddSetting] = Field(
        {}, description="Columns with the same value in every row, and their values."
    )
    hook: FunctionName | None = Field(
        None, description="A function `package.module:name` that is applied to the rows last."
    )
    hook_adds: dict[str, TypeName] = Field(
        {}, description="Columns that the function adds, with their types."
    )

    @field_validator("include", "exclude", "columns", "add", "hook_adds")
    @classmethod
    def _named(cls, names: Any) -> Any:
        require_names(names or ())
        return names

    @property
    def is_shaping(self) -> bool:
        """Whether these settings change the table at the destination."""
        given = (self.name, self.include, self.exclude, self.where, self.add, self.hook)
        return (
            any(given)
            or self.include is not None
            or any(c.is_shaping for c in self.columns.values())
        )
