"""Which mode a table has: what can't be had is refused."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ColumnReserved, ConfigError, ModeNeedsKey
from etl_dagster.model.destination import Destination
from etl_dagster.model.modes import KEYED_MODES, MODES, RESERVED_PREFIX
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.words import names


def require_modes(config: PipelineConfig, destination: Destination) -> None:
    """Refuse a configuration with a mode that the destination doesn't declare.

    Raises:
        ConfigError: all settings that choose such a mode.
    """
    modes = destination.capabilities.modes
    taken = ", ".join(mode for mode in MODES if mode in modes)
    refused = [
        f"{place}: the destination {destination.name} does not keep tables in mode {mode}"
        f"{f' ({why})' if (why := config.destination.mode_refusal(mode)) else ''}; "
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
