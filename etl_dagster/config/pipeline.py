"""The configuration of a pipeline as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from etl_dagster.config.ends import (
    DEFAULT_STORE,
    GIVEN,
    ByType,
    DestinationConfig,
    StoreConfig,
    default_store,
)
from etl_dagster.config.fan_out import FanOutConfig, FanOutMember
from etl_dagster.config.meltano import MeltanoConfig
from etl_dagster.config.memory import MemoryConfig
from etl_dagster.config.merging import MergedTables
from etl_dagster.config.metrics import MetricsConfig
from etl_dagster.config.names import BETWEEN, LONGEST, is_slug, mistakes_of_names
from etl_dagster.config.pace import BatchConfig, CopyConfig, RepairConfig, RetryConfig
from etl_dagster.config.section import Section
from etl_dagster.config.shape import require_salt
from etl_dagster.config.shards import ShardConfig, Sharding, mistakes_of_shards, shardings
from etl_dagster.config.source import SourceConfig
from etl_dagster.config.tables import (
    ColumnConfig,
    Nested,
    Numeric,
    OddPolicy,
    OrNull,
    TableConfig,
    TableMode,
)
from etl_dagster.kinds import DESTINATIONS, STORES
from etl_dagster.table_pattern import TablePattern

_ENVIRONMENT = re.compile(r"[A-Za-z0-9_-]+")
#: Settings that choose how values arrive.
_CHOICES = ("nested", "numeric")


class PipelineConfig(Section):
    """A pipeline: from one publication to one destination, or to several."""

    pipeline: str = Field(
        max_length=LONGEST,
        description="Its name: part of slot names and state IDs. Lower-case letters, digits, _.",
    )
    environment: str = Field(
        "dev", description="The first part of state IDs. Letters, digits, _ and -."
    )
    source: SourceConfig
    state_store: Annotated[
        SerializeAsAny[StoreConfig], BeforeValidator(ByType(STORES, default=DEFAULT_STORE))
    ] = Field(default_factory=default_store)
    destination: Annotated[
        SerializeAsAny[DestinationConfig], BeforeValidator(ByType(DESTINATIONS))
    ] = DestinationConfig(type=GIVEN)
    destinations: dict[
        str,
        Annotated[SerializeAsAny[DestinationConfig], BeforeValidator(ByType(DESTINATIONS))],
    ] = Field(
        {},
        description="Instead of `destination`: several, each with a name, all from one slot.",
    )
    fan_out: FanOutConfig = FanOutConfig()
    shards: dict[str, ShardConfig] = Field(
        {},
        description="Further streams into the same destination, each with a name, a publication "
        "and a slot; the tables of `source.publication` stay in the first.",
    )
    memory: MemoryConfig = MemoryConfig()
    batch: BatchConfig = BatchConfig()
    copy_tables: CopyConfig = Field(CopyConfig(), alias="copy")
    repair: RepairConfig = RepairConfig()
    retry: RetryConfig = RetryConfig()
    on_lost_slot: Literal["stop", "repair", "recopy"] = Field(
        "stop",
        description="What a start does after Postgres has removed WAL that the slot needs: stop; "
        "or create another slot, and either compare every table with the source and replace the "
        "rows that differ (`repair`), or copy every table again (`recopy`).",
    )
    partitions_removed: Literal["keep", "delete"] = Field(
        "keep",
        description="What happens to the rows of a partition that was detached, dropped or "
        "truncated, if its table is published through the partition root.",
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
    odd_values: Annotated[OddPolicy, OrNull] = Field(
        "null",
        description="What happens to a value that its column's type can't hold: null, the nearest "
        "value (`clamp`), or the table stops (`fail`). With `text`, columns of types that have "
        "such values are text at the destination; with `quarantine`, rows with such a value are "
        "kept in a table of their own; both from the next copy on.",
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
    metrics: MetricsConfig = MetricsConfig()
    _merged: MergedTables | None = PrivateAttr(default=None)
    #: Of a destination that the pipeline was given as an object.
    _given_has_own_types: bool = PrivateAttr(default=False)
    _membership: FanOutMember | None = PrivateAttr(default=None)
    _sharding: Sharding | None = PrivateAttr(default=None)
    _whole: PipelineConfig | None = PrivateAttr(default=None)
    _given_reads_text: bool = PrivateAttr(default=False)
    _given_makes_types: bool = PrivateAttr(default=False)

    @field_validator("pipeline")
    @classmethod
    def _is_slug(cls, name: str) -> str:
        if not is_slug(name):
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
        if self.destinations and self.destination.type != GIVEN:
            mistakes.append("give either destination or destinations, not both")
        mistakes += mistakes_of_names(
            "destinations", self.pipeline, self.destinations, "destination"
        )
        former = self.fan_out.former
        if former is not None and former not in self.destinations:
            mistakes.append(f"fan_out.former: {former} is not one of the destinations")
        if self.destinations and self.on_lost_slot != "stop":
            mistakes.append(
                f"on_lost_slot: {self.on_lost_slot} is for a pipeline with one destination"
            )
        if self.shards:
            mistakes += mistakes_of_names("shards", self.pipeline, self.shards, "shard")
            mistakes += mistakes_of_shards(
                self.pipeline,
                self.source.publication,
                self.shards,
                has_several=bool(self.destinations),
            )
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @model_validator(mode="after")
    def _standby_can_do_it(self) -> PipelineConfig:
        if not self.source.standby:
            return self
        if self.state_store.is_in_source:
            raise ValueError(
                "state_store: give it a dsn; without one it is in the source, and a standby "
                "(source.standby) takes no writes"
            )
        if self.source.failover:
            raise ValueError(
                "source: failover and standby exclude each other: Postgres makes no failover slot "
                "on a standby, whose own slots outlive its promotion"
            )
        return self

    @model_validator(mode="after")
    def _choices_arrive(self) -> PipelineConfig:
        """Only what the configuration sets is a mistake: a default gives way.

        Among several destinations, those that read every value as text don't count.
        """
        asked = {name: getattr(self, name) for name in self.model_fields_set & {*_CHOICES}}
        for table, settings in self.tables.items():
            for column, each in settings.columns.items():
                place = f"tables.{table}.columns.{column}."
                asked |= {place + name: getattr(each, name) for name in _CHOICES}
        several = [each for each in self.destinations.values() if not each.reads_text]
        refused = [
            f"{place}: {reason}"
            for place, choice in asked.items()
            for destination in several or (self.destination, *self.destinations.values())
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
        """Quarantine keeps rows as the source has them now, so it can't hold a history."""
        refused = [
            f"{place}: quarantine is only for mode mirror; with mode {mode}, choose another policy"
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
    def membership(self) -> FanOutMember | None:
        """Which destination of which pipeline `member` chose; None for any other pipeline."""
        return self._membership

    def member(self, name: str) -> PipelineConfig:
        """The pipeline from the source to one of `destinations`.

        In the state store and at the destination it is a pipeline like any other, called
        ``PIPELINE__NAME``; the former only destination keeps the pipeline's own name.
        """
        known = tuple(f"{self.pipeline}{BETWEEN}{each}" for each in self.destinations)
        membership = FanOutMember(self.pipeline, name, known)
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
        """The pipeline with all its destinations or shards, if this is one of them; else itself."""
        return self if self._whole is None else self._whole

    def members(self) -> dict[str, PipelineConfig]:
        """By name, the pipelines to all `destinations`, or of all shards; empty without either."""
        return {name: self.member(name) for name in self.destinations} or self._shards()

    @property
    def sharding(self) -> Sharding | None:
        """Which shard `members` chose; None for a pipeline with one stream."""
        return self._sharding

    def _shards(self) -> dict[str, PipelineConfig]:
        if not self.shards:
            return {}
        found = shardings(self.pipeline, self.source.publication, self.shards)
        return {name: self._shard(sharding) for name, sharding in found.items()}

    def _shard(self, sharding: Sharding) -> PipelineConfig:
        publication = sharding.publications[sharding.name]
        copy = self.model_copy(
            update={
                "pipeline": sharding.pipelines[sharding.name],
                "source": self.source.model_copy(update={"publication": publication}),
                "shards": {},
            }
        )
        copy._sharding, copy._whole = sharding, self
        return copy

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
        """The same for a destination given as an object, if none was configured.

        Args:
            name: becomes the type of the destination.
        """
        if self.destination.type != GIVEN:
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
        """The settings that match a table, given as the text of its `TableName`.

        From the least to the most specific: patterns by their number of literal characters, then
        the table's own name.
        """
        return self._settings.matching(table_name)

    def table(self, table_name: str) -> TableConfig:
        """The merged settings of a table, given as the text of its `TableName`.

        The most specific one wins; columns that any of them excludes are excluded. `columns` has
        the entries of all of them: see `column`.
        """
        return self._settings.table(table_name)

    def column(self, table_name: str, column_name: str) -> ColumnConfig:
        """The merged settings of a column: more specific tables win, then more specific names."""
        return self._settings.column(table_name, column_name)

    @property
    def _settings(self) -> MergedTables:
        if self._merged is None or self._merged.tables is not self.tables:
            self._merged = MergedTables(self.tables)
        return self._merged

    def mode_of(self, table_name: str) -> TableMode:
        """How a table is kept if it is copied from now on."""
        return self.table(table_name).mode or self.mode

    def places_of_modes(self) -> dict[str, TableMode]:
        """Each setting that chooses a mode, such as ``tables.public.orders.mode``."""
        tables = {
            f"tables.{name}.mode": table.mode for name, table in self.tables.items() if table.mode
        }
        return {"mode": self.mode} | tables

    def nested_of(self, table_name: str, column_name: str) -> Nested:
        """How a column's values with parts arrive if it is copied from now on."""
        chosen = self.column(table_name, column_name).nested or self.nested
        return "text" if self.destination.refusal(chosen) else chosen

    def numeric_of(self, table_name: str, column_name: str) -> str:
        """How a numeric without precision arrives if it is copied from now on."""
        return self.column(table_name, column_name).numeric or self.numeric

    def odd_policy(self, table_name: str, column_name: str) -> OddPolicy:
        """What happens to values that the column's type can't hold."""
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
        """Whether a partition's rows are deleted when it is removed from its table."""
        return (self.table(table_name).partitions_removed or self.partitions_removed) == "delete"
