"""Which mode a table has: what can't be had is refused, and what is changed is a new copy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ColumnReserved, ConfigError, ModeNeedsKey
from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.destination import Destination
from etl_dagster.model.modes import KEYED_MODES, MODES, RESERVED_PREFIX, TableMode
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Init
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.words import names

_log = logging.getLogger(__name__)


def require_modes(config: PipelineConfig, destination: Destination) -> None:
    """Refuse a configuration with a mode that the destination doesn't declare.

    Raises:
        ConfigError: all settings that choose such a mode.
    """
    modes = destination.capabilities.modes
    taken = ", ".join(mode for mode in MODES if mode in modes)
    refused = [
        f"{place}: the destination {destination.name} does not keep tables in mode {mode}; "
        f"choose one of: {taken}"
        for place, mode in config.places_of_modes().items()
        if mode not in modes
    ]
    if refused:
        raise ConfigError(refused, origin=f"pipeline {config.pipeline}")


def require_keepable(schema: TableSchema) -> None:
    """Refuse a table that can't be kept in its mode.

    Raises:
        ModeNeedsKey: the mode finds rows by a key, and the table has none.
        ColumnReserved: it has a column that is called as those that modes add.
    """
    if schema.mode == "mirror":
        return
    if schema.mode in KEYED_MODES and not schema.key_columns:
        raise ModeNeedsKey(
            f"{schema.name} has no key, by which its rows are found again (mode: {schema.mode})"
        )
    columns = destination_schema(schema).column_names
    reserved = [name for name in columns if name.lower().startswith(RESERVED_PREFIX)]
    if reserved:
        raise ColumnReserved(
            f"{schema.name} has columns that begin with {RESERVED_PREFIX}, as those that "
            f"mode {schema.mode} adds: {names(reserved)}"
        )


@dataclass(frozen=True, slots=True)
class ModeChange:
    """A table that is kept otherwise than the configuration says now."""

    table_id: TableId
    table: str
    kept: TableMode
    wanted: TableMode
    #: Whether a copy of it brings rows.
    is_copied: bool

    def __str__(self) -> str:
        return f"{self.table} is kept in mode {self.kept}, and its mode is {self.wanted} now"

    @property
    def consequence(self) -> str:
        """What the next start makes of it."""
        if not self.is_copied:
            return (
                f"it stays as it is, since its rows are not copied (tables.{self.table}.copy is "
                "false); `etl-dagster reset` begins anew, without the rows of before"
            )
        if self.kept == "mirror":
            return "it is copied again, and the copy replaces what is there"
        return (
            "it is copied again; what is there stays at the destination under another name, and "
            "what is kept begins anew with the copy"
        )


def find_mode_changes(
    config: PipelineConfig,
    published: Iterable[TableSchema],
    known: Mapping[TableId, TableSchema],
) -> list[ModeChange]:
    """The published tables whose mode has been changed since they were copied.

    Args:
        known: the newest version of each table's schema that was stored.
    """
    return [
        ModeChange(
            today.id,
            today.name,
            known[today.id].mode,
            config.mode_of(today.name),
            config.table(today.name).copy_rows,
        )
        for today in published
        if today.id in known and known[today.id].mode != config.mode_of(today.name)
    ]


def follow_modes(
    config: PipelineConfig, store: CoordinatingStore, published: Iterable[TableSchema]
) -> None:
    """Ask for a new copy of each table whose mode has been changed, and say so in the log."""
    tables = list(published)
    states = store.get_table_replication_states()
    known = {
        table.id: schema
        for table in tables
        if not isinstance(states.get(table.id), Init | None)
        and (schema := store.get_table_schema(table.id, LSN_MAX)) is not None
    }
    for change in find_mode_changes(config, tables, known):
        _log.warning("%s: %s", change, change.consequence)
        if change.is_copied:
            store.request_copy(change.table_id)
