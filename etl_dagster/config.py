"""The configuration of a pipeline: one YAML file, or the same objects made in Python."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from etl_dagster.config_shape import (
    AddSetting,
    FunctionName,
    MaskSetting,
    TargetName,
    TypeName,
    require_names,
    require_salt,
)
from etl_dagster.config_text import (
    Place,
    describe,
    parse_numeric,
    parse_size,
    read_yaml,
    suggest,
    with_line,
)
from etl_dagster.errors import ConfigError
from etl_dagster.kinds import DESTINATIONS, STORES, UnknownKind, find_config_model, known_kinds
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern, TablePattern

#: Overrides such as ``ETL_DAGSTER__SOURCE__PASSWORD`` begin with this; ``__`` goes one level down.
ENV_PREFIX = "ETL_DAGSTER__"
_EXPANSION = re.compile(
    r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<open>\{))"
)
_SLUG = re.compile(r"[a-z][a-z0-9_]*")
#: Of a pipeline: the name of a slot holds it, and Postgres keeps 63 bytes of that.
_NAME_LENGTH = 30
#: Stands between the names of a pipeline and of one of its destinations.
_BETWEEN = "__"
_ENVIRONMENT = re.compile(r"[A-Za-z0-9_-]+")
#: What becomes of a value that its column's type can't hold.
OddPolicy: TypeAlias = Literal["null", "clamp", "text", "fail", "quarantine"]
#: In YAML, null without quotes is None.
_Null = BeforeValidator(lambda value: "null" if value is None else value)
#: How tables are kept; see `etl_dagster.model.modes`, which is not needed to read a file.
TableMode: TypeAlias = Literal["mirror", "soft_delete", "append", "scd2"]
#: How values with parts are held; see `etl_dagster.values.columns`.
Nested: TypeAlias = Literal["native", "json", "text"]
#: How a numeric without precision is held; see `etl_dagster.values.columns`.
Numeric: TypeAlias = Annotated[str, AfterValidator(parse_numeric)]
#: Bytes: a number, or a text such as ``8MB``.
ByteCount: TypeAlias = Annotated[int, BeforeValidator(parse_size)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        validate_default=True,
    )

    def relative_to(self, folder: Path) -> Self:
        """The same section with its relative paths taken from `folder`, and ``~`` expanded."""
        paths = {
            name: folder / value.expanduser()
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Path)
        }
        return self.model_copy(update=paths)


class SourceConfig(_Section):
    """The Postgres that is replicated: a DSN, or its parts; parts win over the DSN."""

    publication: str = Field(description="The publication whose tables are replicated.")
    dsn: SecretStr | None = Field(
        None, description="A libpq URI or key/value string; may hold the password."
    )
    host: str | None = Field(None, description="A name, an address, or a socket's folder.")
    port: int | None = Field(None, ge=1, le=65535, description="5432 unless given.")
    user: str | None = Field(None, description="Needs REPLICATION, and SELECT on the tables.")
    password: SecretStr | None = Field(None, description="Better from the environment.")
    database: str | None = Field(None, description="Where the publication is.")
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = (
        Field(None, description="How much TLS is asked for; libpq's default is `prefer`.")
    )
    sslrootcert: str | None = Field(None, description="File of the authorities to trust.")
    sslcert: str | None = Field(None, description="File of the client's certificate.")
    sslkey: str | None = Field(None, description="File of the client's private key.")
    connect_timeout_s: int = Field(10, ge=1, description="Seconds to wait for a connection.")

    @field_validator("publication")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a publication")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> SourceConfig:
        if self.dsn is None and self.database is None:
            raise ValueError("needs either dsn, or at least database (and host, user, ...)")
        return self

    def conninfo(self, **extra: str | int | None) -> str:
        """A libpq connection string, password included; `extra` are further libpq parameters.

        Raises:
            ConfigError: the DSN can't be read.
        """
        from etl_dagster.pg.dsn import Dsn, DsnError

        parts: dict[str, str | int | None] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password.get_secret_value() if self.password else None,
            "dbname": self.database,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "connect_timeout": self.connect_timeout_s,
        } | extra
        given = {key: str(value) for key, value in parts.items() if value is not None}
        place = "source.dsn"
        try:
            dsn = Dsn.parse(self.dsn.get_secret_value() if self.dsn else "")
            place = "source"
            return Dsn.of({**dsn.parameters, **given}).conninfo()
        except DsnError as error:
            hint = "; or use source.user and source.password" if "%" in str(error) else ""
            raise ConfigError([f"{place}: {error}{hint}"], origin="source") from None


class StoreConfig(_Section):
    """What the section ``state_store`` of every type has; the base of a type of one's own."""

    type: str


class DestinationConfig(_Section):
    """What the section ``destination`` of every type has; the base of a type of one's own."""

    #: Whether the destination has types of its own for what is text in Arrow, such as intervals,
    #: and makes its columns by `values.form.OwnType`.
    has_own_types: ClassVar[bool] = False
    #: Whether it reads the text that Postgres prints as the value itself: what Arrow can't hold
    #: arrives as text then, and nothing of it is odd.
    reads_text: ClassVar[bool] = False

    type: str

    @property
    def makes_types(self) -> bool:
        """Whether it makes the types that users of the source made."""
        return False

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        return self.type

    @property
    def odd_values_at(self) -> str:
        """Where values went that columns' types can't hold, for people: a sentence."""
        return f"A destination of type {self.type} is sent them with their rows and may keep them."

    def refusal(self, choice: str) -> str | None:
        """Why values can't arrive in this way, a choice of `nested` or `numeric`; None: they can.

        Where it gives a reason for the default of `nested`, values with parts arrive as text.
        """
        return None


#: Settings that say how values arrive.
_CHOICES = ("nested", "numeric")
#: Stands for the type of a destination that a pipeline is given as an object.
_GIVEN = "given"
#: The type of a state store that names none.
_DEFAULT_STORE = "postgres"


class _Kind:
    """Validates a section with the model that belongs to its ``type``."""

    def __init__(self, group: str, default: str | None = None) -> None:
        self._group = group
        self._default = default

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("type", self._default)
        known = ", ".join(known_kinds(self._group))
        if name is None:
            raise PydanticCustomError(
                "type_missing", "is required; known are: {known}", {"known": known}
            )
        try:
            return self._model(name).model_validate(value)
        except UnknownKind as error:
            raise PydanticCustomError("type_unknown", "{why}", {"why": error.reason}) from error

    def _model(self, name: object) -> type[_Section]:
        if not isinstance(name, str):
            raise UnknownKind(f"must be one of: {', '.join(known_kinds(self._group))}")
        found = find_config_model(self._group, name)
        if not (isinstance(found, type) and issubclass(found, _Section)):
            raise UnknownKind("the config_model of this type's class is no model for this section")
        return found


def _default_store() -> StoreConfig:
    made: StoreConfig = find_config_model(STORES, _DEFAULT_STORE)()
    return made


class BatchConfig(_Section):
    """When a stretch of the stream is closed and written."""

    max_fill_ms: int = Field(1000, ge=1, description="Age of the oldest change, at most.")
    max_bytes: ByteCount = Field(
        8 * 1024**2, ge=1024, description="Size as Postgres sends it, at most."
    )
    max_rows: int = Field(200_000, ge=1, description="Rows, at most.")
    max_queued: int = Field(2, ge=1, description="Closed batches waiting for the destination.")
    max_in_flight: int = Field(
        1,
        ge=1,
        description="Writes at a time of one stream, of different tables, where the destination "
        "returns futures; one that returns when the batch is durable has one.",
    )
    max_in_flight_bytes: ByteCount = Field(
        32 * 1024**2, ge=1024, description="Memory of the rows of all these writes, at most."
    )


class CopyConfig(_Section):
    """How tables are copied."""

    max_table_sync_workers: int = Field(
        4, ge=1, description="Tables, or groups of small tables, at a time."
    )
    max_connections_per_table: int = Field(4, ge=1, description="Chunks of one table at a time.")
    chunk_rows: int = Field(250_000, ge=1, description="Rows in a chunk, by statistics.")


class RetryConfig(_Section):
    """How failures that waiting may cure are retried; the delay doubles, with jitter."""

    initial_delay_ms: int = Field(500, ge=1, description="The first pause.")
    max_delay_ms: int = Field(30_000, ge=1, description="The longest pause.")
    max_attempts: int = Field(8, ge=1, description="In a row; progress resets the count.")


class _MergedSection(_Section):
    """A section of which several may concern one table; what is set in one wins over another."""

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
        """What was set alone: read again, a default would win over a setting elsewhere."""
        values: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        unset = {fields[name].alias or name for name in fields.keys() - self.given.keys()}
        return {key: value for key, value in values.items() if key not in unset}

    @property
    def given(self) -> dict[str, Any]:
        """What was set, by the names of the fields."""
        values = ((name, getattr(self, name)) for name in self.model_fields_set)
        return {name: value for name, value in values if value is not None}


class ColumnConfig(_MergedSection):
    """What differs for one column."""

    _null_is_a_value = ("odd_values", "mask")

    nested: Nested | None = Field(None, description="As for the pipeline, for this column.")
    odd_values: OddPolicy | None = Field(None, description="As for the table, for this column.")
    numeric: Numeric | None = Field(None, description="As for the pipeline, for this column.")
    name: str | None = Field(None, min_length=1, description="The name at the destination.")
    cast: TypeName | None = Field(
        None, description="A type that the values are read as, such as `text` or `bigint`."
    )
    mask: MaskSetting | None = Field(
        None, description="What stands in place of the values, which the destination never gets."
    )

    @property
    def is_shaping(self) -> bool:
        """Whether the column differs at the destination by it."""
        return (self.name, self.cast, self.mask) != (None, None, None)


class TableConfig(_MergedSection):
    """What differs for one table, or for all whose names are like a pattern."""

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
    exclude: list[str] = Field([], description="Columns that it has not, or patterns.")
    columns: dict[str, ColumnConfig] = Field(
        {}, description="Settings by column name, or by pattern."
    )
    where: str | None = Field(
        None, description="A condition as in SQL; the destination has only rows that meet it."
    )
    add: dict[str, AddSetting] = Field(
        {}, description="Columns that hold the same in every row, with their values."
    )
    hook: FunctionName | None = Field(
        None, description="A function `package.module:name` that the rows pass last."
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
        """Whether the table differs at the destination by it."""
        given = (self.name, self.include, self.exclude, self.where, self.add, self.hook)
        return (
            any(given)
            or self.include is not None
            or any(c.is_shaping for c in self.columns.values())
        )


class MeltanoConfig(_Section):
    """The mirror of every table's position as Meltano state."""

    enabled: bool = Field(True, description="Whether positions are mirrored.")
    state_backend: SecretStr | None = Field(
        None,
        description="A postgres:// URI as Meltano's state_backend.uri; by default the database and "
        "schema of the state store.",
    )
    interval_s: float = Field(
        5.0, gt=0, description="A position is written this often; changes of phase at once."
    )


class FanOutConfig(_Section):
    """How one slot serves several destinations."""

    buffer: ByteCount = Field(
        32 * 1024**2,
        ge=64_000,
        description="Memory for what one destination has not taken yet; while it is full, the slot "
        "isn't read, and the others wait.",
    )
    max_wal_behind: ByteCount = Field(
        1024**3,
        ge=1_000_000,
        description="A destination that is behind by more WAL, and holds the others back, is set "
        "aside: it gets a slot of its own.",
    )
    max_wal_kept: ByteCount = Field(
        10 * 1024**3,
        ge=1_000_000,
        description="A destination that was set aside loses its slot once that keeps more WAL, and "
        "its tables are copied again.",
    )
    former: str | None = Field(
        None,
        description="The destination that was the pipeline's only one before: it keeps its tables "
        "and its position.",
    )


@dataclass(frozen=True, slots=True)
class Membership:
    """Of which pipeline with several destinations a configuration is one, and which."""

    pipeline: str
    name: str
    #: The pipelines to all destinations, as the state store knows them.
    all_members: tuple[str, ...] = ()

    @property
    def own_slot_of(self) -> str:
        """Takes the place of the pipeline in the name of the slot that is this member's alone."""
        return f"{self.pipeline}{_BETWEEN}{self.name}"


class PipelineConfig(_Section):
    """A pipeline: from one publication to one destination, or to several."""

    pipeline: str = Field(
        max_length=_NAME_LENGTH,
        description="Its name: part of slot names and state IDs. Lower-case letters, digits, _.",
    )
    environment: str = Field(
        "dev", description="The first part of state IDs. Letters, digits, _ and -."
    )
    source: SourceConfig
    state_store: Annotated[
        SerializeAsAny[StoreConfig], BeforeValidator(_Kind(STORES, default=_DEFAULT_STORE))
    ] = Field(default_factory=_default_store)
    destination: Annotated[
        SerializeAsAny[DestinationConfig], BeforeValidator(_Kind(DESTINATIONS))
    ] = DestinationConfig(type=_GIVEN)
    destinations: dict[
        str, Annotated[SerializeAsAny[DestinationConfig], BeforeValidator(_Kind(DESTINATIONS))]
    ] = Field(
        {},
        description="In place of `destination`: several, each by a name of its own, all from one "
        "slot.",
    )
    fan_out: FanOutConfig = FanOutConfig()
    batch: BatchConfig = BatchConfig()
    copy_tables: CopyConfig = Field(CopyConfig(), alias="copy")
    retry: RetryConfig = RetryConfig()
    partitions_removed: Literal["keep", "delete"] = Field(
        "keep",
        description="What becomes of the rows of a partition that was detached, dropped or "
        "truncated, where its table is published through the partition root.",
    )
    mode: TableMode = Field(
        "mirror",
        description="How tables that are copied from now on are kept at the destination: as the "
        "source has them now (`mirror`), with deleted rows marked (`soft_delete`), as a row for "
        "each change (`append`), or as a row for each version with the time in which it was valid "
        "(`scd2`).",
    )
    nested: Nested = Field(
        "native",
        description="How arrays, ranges, composites, enums and hstore arrive in columns that are "
        "copied from now on: as nested types of the destination, as JSON, or as the text that "
        "Postgres prints.",
    )
    odd_values: Annotated[OddPolicy, _Null] = Field(
        "null",
        description="What becomes of a value that its column's type can't hold: null, the nearest "
        "value that it holds, or the end of the table's replication. Under `text`, columns of "
        "types that have such values are text at the destination, and under `quarantine` rows with "
        "such a value are kept apart from their table, both from the next copy on.",
    )
    numeric: Numeric = Field(
        "text",
        description="How `numeric` without precision arrives in columns that are copied from now "
        "on, outside of keys and of values with parts: `text`, exactly as Postgres prints it; "
        "`decimal(p,s)` with up to 38 digits; or `double`, the nearest one.",
    )
    tables: dict[str, TableConfig] = Field(
        {}, description="Settings by table, or by a pattern such as `sales.*`."
    )
    salt: Annotated[SecretStr | None, AfterValidator(require_salt)] = Field(
        None,
        description="The key of hashed values, at least 16 characters; better from the "
        "environment.",
    )
    meltano: MeltanoConfig = MeltanoConfig()
    #: What `table` and `column` were asked for, and of which tables' settings.
    _merged: tuple[Any, dict[Any, Any]] = PrivateAttr(default=(None, {}))
    #: Of a destination that the pipeline was given as an object.
    _given_has_own_types: bool = PrivateAttr(default=False)
    _membership: Membership | None = PrivateAttr(default=None)
    _whole: PipelineConfig | None = PrivateAttr(default=None)
    _given_reads_text: bool = PrivateAttr(default=False)
    _given_makes_types: bool = PrivateAttr(default=False)

    @field_validator("pipeline")
    @classmethod
    def _is_slug(cls, name: str) -> str:
        if not _SLUG.fullmatch(name):
            raise ValueError(
                "must begin with a lower-case letter and hold only lower-case letters, digits and _"
            )
        return name

    @field_validator("environment")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not _ENVIRONMENT.fullmatch(name):
            raise ValueError("must hold only letters, digits, _ and -")
        return name

    @field_validator("tables")
    @classmethod
    def _qualified(cls, tables: dict[str, TableConfig]) -> dict[str, TableConfig]:
        named: dict[str, TableConfig] = {}
        for text, settings in tables.items():
            name = TablePattern.parse(text).text
            if name in named:
                raise ValueError(f"{name} is named twice")
            named[name] = settings
        return named

    @model_validator(mode="after")
    def _members_are_named(self) -> PipelineConfig:
        mistakes = []
        if self.destinations and self.destination.type != _GIVEN:
            mistakes.append("give either destination or destinations, not both")
        for name in self.destinations:
            place = f"destinations.{name}"
            if not _SLUG.fullmatch(name) or _BETWEEN in name or name.endswith("_"):
                mistakes.append(
                    f"{place}: a name must begin with a lower-case letter, hold only lower-case "
                    "letters, digits and single _, and not end with one"
                )
            elif len(name) + len(_BETWEEN) + len(self.pipeline) > _NAME_LENGTH:
                mistakes.append(
                    f"{place}: the names of pipeline and destination have together more than "
                    f"{_NAME_LENGTH - len(_BETWEEN)} characters"
                )
        former = self.fan_out.former
        if former is not None and former not in self.destinations:
            mistakes.append(f"fan_out.former: {former} is not one of the destinations")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @model_validator(mode="after")
    def _choices_arrive(self) -> PipelineConfig:
        """Only what was asked for is a mistake: the default gives way."""
        asked = {name: getattr(self, name) for name in self.model_fields_set & {*_CHOICES}}
        for table, settings in self.tables.items():
            for column, each in settings.columns.items():
                place = f"tables.{table}.columns.{column}."
                asked |= {place + name: getattr(each, name) for name in _CHOICES}
        refused = [
            f"{place}: {reason}"
            for place, choice in asked.items()
            for destination in (self.destination, *self.destinations.values())
            if choice is not None and (reason := destination.refusal(choice))
        ]
        if refused:
            raise ValueError("; ".join(refused))
        return self

    @model_validator(mode="after")
    def _hashes_have_a_salt(self) -> PipelineConfig:
        places = [
            f"tables.{table}.columns.{column}.mask"
            for table, settings in self.tables.items()
            for column, each in settings.columns.items()
            if each.mask is not None and each.mask.kind == "hash"
        ]
        if places and self.salt is None:
            raise ValueError(f"salt: is required by {', '.join(places)}")
        return self

    @model_validator(mode="after")
    def _quarantine_is_for_mirrors(self) -> PipelineConfig:
        """The place apart for a row is one for what the source has now."""
        refused = [
            f"{place}: quarantine keeps rows apart from a mirror; with mode {mode}, choose another "
            "policy"
            for place, mode in self._quarantines()
            if mode != "mirror"
        ]
        if refused:
            raise ValueError("; ".join(refused))
        return self

    def _quarantines(self) -> Iterator[tuple[str, TableMode]]:
        """The settings by which rows are kept apart, each with the mode of the table."""
        if self.odd_values == "quarantine":
            yield "odd_values", self.mode
        for name, table in self.tables.items():
            mode = table.mode or self.mode
            if (table.odd_values or self.odd_values) == "quarantine":
                yield f"tables.{name}.odd_values", mode
            for column, settings in table.columns.items():
                if settings.odd_values == "quarantine":
                    yield f"tables.{name}.columns.{column}.odd_values", mode

    # -- several destinations --------------------------------------------------------------------

    @property
    def membership(self) -> Membership | None:
        """What `member` made this of; None of a pipeline of its own."""
        return self._membership

    def member(self, name: str) -> PipelineConfig:
        """The pipeline from the source to one of `destinations`.

        In the state store and at the destination it is a pipeline like any other, called
        ``PIPELINE__NAME``; the former only destination keeps the pipeline's own name.
        """
        known = tuple(f"{self.pipeline}{_BETWEEN}{each}" for each in self.destinations)
        membership = Membership(self.pipeline, name, known)
        is_former = name == self.fan_out.former
        copy = self.model_copy(
            update={
                "pipeline": self.pipeline if is_former else membership.own_slot_of,
                "destination": self.destinations[name],
                "destinations": {},
            }
        )
        copy._membership, copy._whole = membership, self
        return copy

    @property
    def whole(self) -> PipelineConfig:
        """The pipeline with all its destinations that this is a member of, or itself."""
        return self if self._whole is None else self._whole

    def members(self) -> dict[str, PipelineConfig]:
        """The pipelines to all `destinations`, by name; none where there is only one."""
        return {name: self.member(name) for name in self.destinations}

    def state_id(self, table_name: str) -> str:
        """The Meltano state ID of a table, given as the text of its `TableName`."""
        return f"{self.environment}:{self.pipeline}-to-{self.destination.type}:{table_name}"

    def given_destination(
        self,
        name: str,
        *,
        has_own_types: bool = False,
        reads_text: bool = False,
        makes_types: bool = False,
    ) -> PipelineConfig:
        """The same for a destination given as an object; its name is used where none was
        configured."""
        if self.destination.type != _GIVEN:
            return self
        copy = self.model_copy(update={"destination": DestinationConfig(type=name)})
        copy._given_has_own_types = has_own_types
        copy._given_reads_text = reads_text
        copy._given_makes_types = makes_types
        return copy

    @property
    def has_own_types(self) -> bool:
        """As `DestinationConfig.has_own_types`."""
        return self.destination.has_own_types or self._given_has_own_types

    @property
    def reads_text(self) -> bool:
        """As `DestinationConfig.reads_text`."""
        return self.destination.reads_text or self._given_reads_text

    @property
    def makes_types(self) -> bool:
        """As `DestinationConfig.makes_types`."""
        return self.destination.makes_types or self._given_makes_types

    def matching(self, table_name: str) -> list[tuple[str, TableConfig]]:
        """The settings that concern a table, given as the text of its `TableName`.

        From the most general to the one that says most exactly which tables are meant: the name
        itself, else the pattern with the most characters that aren't wild.
        """
        name = TableName.parse(table_name)
        found = [(TablePattern.parse(text), text) for text in self.tables]
        matching = sorted((p.rank, text) for p, text in found if p.matches(name))
        return [(text, self.tables[text]) for _, text in matching]

    def table(self, table_name: str) -> TableConfig:
        """What differs for a table, given as the text of its `TableName`.

        Of several settings the more exact one wins; what is excluded by one is excluded. `columns`
        has all of them: see `column`.
        """
        known = self._known_merged()
        if table_name not in known:
            given: dict[str, Any] = {}
            for _, settings in self.matching(table_name):
                more = settings.given
                for joined in ("columns", "exclude", "add"):
                    if joined in more and joined in given:
                        more[joined] = _joined(given[joined], more[joined])
                given |= more
            known[table_name] = TableConfig.model_construct(None, **given)
        merged: TableConfig = known[table_name]
        return merged

    def column(self, table_name: str, column_name: str) -> ColumnConfig:
        """What differs for a column. More exact are first settings of its table, then its name."""
        known = self._known_merged()
        if (table_name, column_name) not in known:
            given: dict[str, Any] = {}
            for _, settings in self.matching(table_name):
                found = [(Pattern.of(text), each) for text, each in settings.columns.items()]
                matching = [(p.rank, each) for p, each in found if p.matches(column_name)]
                for _, each in sorted(matching, key=lambda found: found[0]):
                    given |= each.given
            known[table_name, column_name] = ColumnConfig.model_construct(None, **given)
        merged: ColumnConfig = known[table_name, column_name]
        return merged

    def _known_merged(self) -> dict[Any, Any]:
        tables, known = self._merged
        if tables is not self.tables:
            known = {}
            self._merged = (self.tables, known)
        return known

    def mode_of(self, table_name: str) -> TableMode:
        """How a table is kept, where it is copied from now on."""
        return self.table(table_name).mode or self.mode

    def places_of_modes(self) -> dict[str, TableMode]:
        """Each setting that chooses a mode, such as ``tables.public.orders.mode``."""
        tables = {
            f"tables.{name}.mode": table.mode for name, table in self.tables.items() if table.mode
        }
        return {"mode": self.mode} | tables

    def nested_of(self, table_name: str, column_name: str) -> Nested:
        """How a column's values with parts arrive, where it is copied from now on."""
        chosen = self.column(table_name, column_name).nested or self.nested
        return "text" if self.destination.refusal(chosen) else chosen

    def numeric_of(self, table_name: str, column_name: str) -> str:
        """How a numeric without precision arrives, where it is copied from now on."""
        return self.column(table_name, column_name).numeric or self.numeric

    def odd_policy(self, table_name: str, column_name: str) -> OddPolicy:
        """What becomes of values that the column's type can't hold."""
        of_column = self.column(table_name, column_name).odd_values
        return of_column or self.table(table_name).odd_values or self.odd_values

    def places_of_odd_policy(self, policy: OddPolicy) -> list[str]:
        """The settings that choose this policy, such as ``tables.public.orders.odd_values``."""
        places = [] if self.odd_values != policy else ["odd_values"]
        for name, table in self.tables.items():
            if table.odd_values == policy:
                places.append(f"tables.{name}.odd_values")
            places += [
                f"tables.{name}.columns.{column}.odd_values"
                for column, settings in table.columns.items()
                if settings.odd_values == policy
            ]
        return places

    def removes_partitions(self, table_name: str) -> bool:
        """Whether rows of a table's partition go when the partition goes at the source."""
        return (self.table(table_name).partitions_removed or self.partitions_removed) == "delete"


def _joined(before: Any, more: Any) -> Any:
    """Two lists or mappings as one, the second over the first."""
    return {**before, **more} if isinstance(more, dict) else [*before, *more]


def load_config(path: str | Path, environ: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read a YAML file, expand ``${NAME}`` and ``${NAME:-default}``, apply the overrides.

    ``$$`` is a plain dollar sign. Relative paths of destination and state store are relative to
    the file.

    Raises:
        ConfigError: the file can't be read, or holds mistakes: all of them, each with its place.
    """
    import yaml

    environ = os.environ if environ is None else environ
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError([f"can't be read: {what}"], origin=str(path)) from error
    try:
        raw, lines, twice = read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # The cause quotes the line, which may hold a password.
        raise ConfigError([f"{place}{error.problem}"], origin=str(path)) from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(["must hold a mapping, such as `pipeline: shop`"], origin=str(path))
    return _parse(raw, environ, origin=path, lines=lines, mistakes=twice)


def parse_config(
    raw: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    origin: str | Path = "configuration",
) -> PipelineConfig:
    """Make a configuration from plain values; as `load_config`, without the file.

    Without a `destination` it is for a pipeline that is given its destination as an object.
    """
    environ = os.environ if environ is None else environ
    return _parse(raw, environ, origin=origin, lines={}, mistakes=[])


def _parse(
    raw: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    origin: str | Path,
    lines: Mapping[Place, int],
    mistakes: list[str],
) -> PipelineConfig:
    """As `parse_config`; `lines` are those of the keys, `mistakes` what was found before."""
    found: list[tuple[Place, str]] = []
    values = _expand(raw, environ, found, ())
    variables = _override(values, environ, mistakes)
    if isinstance(origin, Path) and "destination" not in values and not values.get("destinations"):
        found.append((("destination",), "is required; or `destinations`, each under a name"))
    config = None
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        found += [_mistake(detail, values) for detail in error.errors(include_input=False)]
    for place, message in found:
        mistake = f"{'.'.join(place)}: {message}" if place else message
        if place in variables:
            mistakes.append(f"{variables[place]}: {mistake}")
        else:
            mistakes.append(with_line(place, mistake, lines))
    if mistakes or config is None:
        raise ConfigError(mistakes, origin=str(origin))
    if isinstance(origin, Path):
        folder = origin.absolute().parent
        sections = ("destination", "state_store")
        placed = {name: getattr(config, name).relative_to(folder) for name in sections}
        several = {name: each.relative_to(folder) for name, each in config.destinations.items()}
        config = config.model_copy(update=placed | {"destinations": several})
    return config


def _expand(
    value: Any, environ: Mapping[str, str], mistakes: list[tuple[Place, str]], place: Place
) -> Any:
    if isinstance(value, Mapping):
        return {k: _expand(v, environ, mistakes, (*place, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [
            _expand(v, environ, mistakes, (*place, str(index))) for index, v in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["open"]:
            mistakes.append((place, "${ is not closed, or names no variable; $$ is a plain $"))
            return "0"
        if name is None:
            return "$"
        if name in environ:
            return environ[name]
        if default is not None:
            return default
        mistakes.append((place, f"the environment variable {name} is not set"))
        return "0"  # stands in so that the rest can still be checked

    return _EXPANSION.sub(replacement, value)


def _override(
    values: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]
) -> dict[Place, str]:
    """Apply the overrides; returns the variable of each."""
    variables: dict[Place, str] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        *sections, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        target: Any = values
        for section in sections:
            target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict) or not key:
            mistakes.append(f"{name}: there is no such setting to override")
            continue
        target[key] = environ[name]
        variables[(*sections, key)] = name
    return variables


def _mistake(detail: Any, values: Mapping[str, Any]) -> tuple[Place, str]:
    """One mistake and its place, never with the value, which may be a secret."""
    place = tuple(map(str, detail["loc"]))
    kind = detail["type"]
    message = describe(kind, detail["msg"], detail.get("ctx") or {})
    if kind == "extra_forbidden":
        model = _section_model(place[:-1], values)
        known = [] if model is None else _keys(model)
        message += suggest(place[-1], known, list(_all_keys()))
    elif kind in ("type_missing", "type_unknown"):
        place = (*place, "type")
    return place, message


def _section_model(place: Place, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model of a section; None where there is none."""
    match place:
        case ():
            return PipelineConfig
        case ("tables", _):
            return TableConfig
        case ("tables", _, "columns", _):
            return ColumnConfig
        case ("destination" | "state_store" as section,):
            group = DESTINATIONS if section == "destination" else STORES
            default = None if section == "destination" else _DEFAULT_STORE
            given = values.get(section)
            name = given.get("type", default) if isinstance(given, Mapping) else default
            try:
                return _Kind(group)._model(name)
            except UnknownKind:
                return None
        case ("destinations", name):
            several = values.get("destinations")
            given = several.get(name) if isinstance(several, Mapping) else None
            return _section_model(("destination",), {"destination": given})
        case (section,):
            return _SECTIONS.get(section)
    return None


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _all_keys() -> Iterator[Place]:
    for section, model in _SECTIONS.items():
        for key in _keys(model):
            yield section, key


_SECTIONS: Mapping[str, type[BaseModel]] = {
    "source": SourceConfig,
    "batch": BatchConfig,
    "copy": CopyConfig,
    "fan_out": FanOutConfig,
    "retry": RetryConfig,
    "meltano": MeltanoConfig,
}

_MOVED: Mapping[str, tuple[str, str]] = {
    "DuckDBDestinationConfig": (DESTINATIONS, "duckdb"),
    "MemoryDestinationConfig": (DESTINATIONS, "memory"),
    "MemoryStoreConfig": (STORES, "memory"),
    "PostgresStoreConfig": (STORES, "postgres"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The models that were here before each was next to its class; deprecated."""
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        group, kind = _MOVED[name]
        model = find_config_model(group, kind)
        warnings.warn(
            f"etl_dagster.config.{name} is deprecated: import from {model.__module__}",
            DeprecationWarning,
            stacklevel=2,
        )
        return model
