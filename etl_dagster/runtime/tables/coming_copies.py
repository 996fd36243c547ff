"""Tables that the next start copies again, because their settings have changed since their copy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Errored, Init, ManualRetry
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.runtime.tables.reshaping import newest_schemas
from etl_dagster.shaping.rules import differs
from etl_dagster.source.catalog import fetch_publication, fetch_published_tables
from etl_dagster.source.control import Connection, SourceControl
from etl_dagster.words import names

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComingCopy:
    """A table that is otherwise at the destination than the configuration says now."""

    table_id: TableId
    table: str
    #: The mode that it is kept in.
    kept: TableMode
    #: The mode of the configuration.
    wanted: TableMode
    #: What differs of its columns, names and rows, for people.
    shape: tuple[str, ...] = ()
    #: Whether a copy of it brings rows.
    is_copied: bool = True
    #: What the destination says of rows that were kept in another mode.
    left: str | None = None

    def __str__(self) -> str:
        return f"{self.table}: {self.reason}"

    @property
    def reason(self) -> str:
        """What has changed since the table was copied."""
        found = []
        if self.kept != self.wanted:
            found.append(f"mode changed from {self.kept} to {self.wanted}")
        if self.shape:
            found.append(f"shape changed ({names(self.shape)})")
        return "; ".join(found)

    @property
    def stops(self) -> bool:
        """Whether the table can have neither the rows of before nor the new settings."""
        return bool(self.shape) and not self.is_copied

    @property
    def consequence(self) -> str:
        """What the next start makes of it."""
        if self.stops:
            return f"it stops, since its rows are not copied (tables.{self.table}.copy is false)"
        if not self.is_copied:
            return (
                f"it stays as it is, since its rows are not copied (tables.{self.table}.copy is "
                "false); `etl-dagster reset` starts over, without the rows of before"
            )
        if self.kept == self.wanted:
            return "it is copied again"
        if self.left is not None:
            return f"it is copied again; {self.left}"
        if self.kept == "mirror":
            return "it is copied again, and the copy replaces what is there"
        return (
            "it is copied again; what is there stays at the destination under another name, and "
            "what is kept starts over with the copy"
        )

    @property
    def solution(self) -> str:
        """What to do where that is not what is wanted."""
        if self.stops:
            return (
                "Restore the former settings, or begin without its rows: "
                f"`{command(None, 'reset', self.table)}`"
            )
        if not self.is_copied:
            return (
                "Restore the former mode, or reset the table: "
                f"`{command(None, 'reset', self.table)}`"
            )
        return "If that is not what you want, restore the former settings before the next start."

    def to_json(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "consequence": self.consequence,
            "is_copied": self.is_copied,
        }


def find_coming_copies(
    config: PipelineConfig,
    known: Mapping[TableId, TableSchema],
    published: Iterable[TableSchema],
) -> list[ComingCopy]:
    """The published tables whose mode or shape has been changed since they were copied.

    Args:
        known: the newest version of each table's schema in the store.
        published: as the catalog describes them.
    """
    found = []
    for today in published:
        before = known.get(today.id)
        if before is None:
            continue
        wanted = config.mode_of(today.name)
        shape = tuple(differs(before, chosen(today, config), config))
        if shape or before.mode != wanted:
            is_copied = config.table(today.name).copy_rows
            left = config.destination.left_by_mode(before.mode, wanted)
            found.append(
                ComingCopy(today.id, today.name, before.mode, wanted, shape, is_copied, left)
            )
    return found


def coming_copies(
    config: PipelineConfig, store: CoordinatingStore, published: Iterable[TableSchema]
) -> list[ComingCopy]:
    """Those of `find_coming_copies` that were copied and don't wait for a copy already."""
    states = store.get_table_replication_states()
    known = {
        table_id: schema
        for table_id, schema in newest_schemas(store).items()
        if not isinstance(states[table_id], Init)
    }
    return find_coming_copies(config, known, published)


def announced_copies(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl
) -> list[ComingCopy]:
    """What a start would copy again now; changes nothing.

    Raises:
        EtlError: source or store can't be asked.
    """
    if not store.get_table_replication_states():
        return []
    return coming_copies(config, store, control.ask("reading the publication", _fetch, config))


def _fetch(connection: Connection, config: PipelineConfig) -> list[TableSchema]:
    publication = fetch_publication(connection, config.source.publication)
    tables = fetch_published_tables(connection, publication.name, with_filters=False)
    return [table.schema for table in tables]


def request_coming_copies(
    store: CoordinatingStore, config: PipelineConfig, published: Iterable[TableSchema]
) -> None:
    """Ask for a new copy of each table that differs, and say in the log which and why.

    Until its copy is complete, a table stays as it was made, and gets no changes.
    """
    for coming in coming_copies(config, store, published):
        if coming.stops:
            _stop(store, coming)
            continue
        _log.warning("%s: %s", coming, coming.consequence)
        if coming.is_copied:
            store.request_copy(coming.table_id)


def _stop(store: CoordinatingStore, coming: ComingCopy) -> None:
    state = store.get_table_replication_state(coming.table_id)
    if state is None or isinstance(state, Init):
        return
    reason = f"{coming.reason}, and it is not copied again (tables.{coming.table}.copy is false)"
    failed = Errored(reason, coming.solution, ManualRetry())
    _log.error("%s stopped: %s", coming.table, failed.reason)
    store.transition_table_state(coming.table_id, state, failed)
