"""Tables whose rows were computed again by an ALTER TABLE, of which the stream has nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Init
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.tables.labels import (
    Labels,
    enums_of,
    has_renamed,
    labels_from_json,
    labels_of,
    labels_to_json,
)
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.columns import Traces, fetch_traces
from etl_dagster.source.control import SourceControl
from etl_dagster.source.money import fetch_sample, money_columns
from etl_dagster.source.trigger import fetch_trigger
from etl_dagster.values.types import PgType, contains_composite

_log = logging.getLogger(__name__)

#: Of the note.
KEY = "alterations"


class Rewrites:
    """Compares what the catalog keeps of each table with what it kept when it was last read.

    Rows that are written again leave another file; a column that is altered leaves another entry.
    Both at once is an ALTER TABLE that may have given rows other values: ``ALTER COLUMN ... TYPE``,
    ``ADD COLUMN`` with a volatile default. VACUUM FULL, CLUSTER and TRUNCATE leave the columns.

    Where the event trigger was there all the time, the stream says more, and this says nothing,
    but for generated columns that became ordinary ones: they were not published before, and look
    like columns that were added.
    """

    def __init__(
        self,
        store: CoordinatingStore,
        control: SourceControl,
        own_money: Callable[[], str],
    ) -> None:
        """Args:
        own_money: asks how the server prints money without our settings (`money.fetch_sample`).
        """
        self._store = store
        self._own_money = own_money
        self._control = control
        self._lock = threading.Lock()
        self._last: dict[TableId, Traces] | None = None
        self._last_trigger = ""
        #: How the rows at the destination print money; None before there was any.
        self._money: str | None = None
        #: As of the last look.
        self._labels: Labels = {}
        #: It is pinned, so a process asks once.
        self._money_checked = False
        #: As of the last look of this process; what the store keeps is compared once.
        self._unannounced: dict[TableId, _Unannounced] = {}

    def look(self, tables: Collection[PublishedTable]) -> None:
        """Ask for a new copy of the tables that need one.

        Raises:
            EtlError: the source or the store can't be asked.
        """
        with self._lock:
            self._look(tables)

    def copy_follows(self, table_id: TableId) -> None:
        """The table will be copied for another reason; what it has become until now is in that
        copy. From any thread.

        Raises:
            EtlError: the source can't be asked.
        """
        with self._lock:
            traces = self._control.ask("reading a table's columns", fetch_traces, [table_id])
            if self._last is not None:
                self._last.update(traces)

    def _look(self, tables: Collection[PublishedTable]) -> None:
        last = self._load() if self._last is None else self._last
        trigger = self._control.ask("looking at the event trigger", fetch_trigger)
        reported = trigger.trace if trigger.reports else ""
        is_reported = bool(reported) and reported == self._last_trigger
        by_id = {table.schema.id: table.schema for table in tables}
        now = self._control.ask("reading the tables' columns", fetch_traces, list(by_id))
        for table_id, traces in now.items():
            before = last.get(table_id)
            if before is None or before.columns == traces.columns:
                continue
            reason = None if is_reported else self._reason(by_id[table_id], before, traces)
            if before.generated & traces.plain:
                reason = reason or "a generated column became an ordinary one"
            if reason is not None:
                self._copy_again(by_id[table_id], reason)
        labels = labels_of(by_id.values())
        if not is_reported:
            self._find_unannounced(by_id.values(), labels)
        money = self._find_other_money(by_id.values(), last)
        # Only now: had the process died before, the next one must come to the same conclusion.
        seen = (now, reported, money, labels)
        if seen != (last, self._last_trigger, self._money, self._labels):
            entries = {
                str(table_id): [traces.columns, traces.files, *sorted(traces.generated)]
                for table_id, traces in now.items()
            }
            status = {"tables": entries, "trigger": reported, "money": money}
            self._store.put_note(KEY, {**status, "labels": labels_to_json(labels)})
        self._last, self._last_trigger, self._money = dict(now), reported, money
        self._labels = labels

    def _find_other_money(
        self, tables: Iterable[TableSchema], last: Collection[TableId]
    ) -> str | None:
        """How money prints, where a table has some; those that were read otherwise are copied."""
        having = [table for table in tables if money_columns(table)]
        if not having or self._money_checked:
            return self._money
        money = self._control.ask("looking at lc_monetary", fetch_sample)
        # A version that didn't pin the setting has left nothing of how it was.
        before = self._money or (self._own_money() if last else money)
        if before != money:
            for table in having:
                if table.id in last:
                    self._copy_again(table, "money prints otherwise: lc_monetary was another one")
        self._money_checked = True
        return money

    def _find_unannounced(self, tables: Iterable[TableSchema], labels: Labels) -> None:
        """What leaves no trace in the table's entries, and no message in the stream."""
        for today in tables:
            unannounced = _Unannounced.of(today, labels)
            if unannounced == self._unannounced.get(today.id, _NOTHING):
                continue
            known = self._store.get_table_schema(today.id, LSN_MAX)
            reason = None if known is None else _reason_unannounced(known, today)
            if reason is None and has_renamed(self._labels, known, today):
                reason = "a value of an enum was renamed"
            if reason is not None:
                self._copy_again(today, reason)
            self._unannounced[today.id] = unannounced

    def _load(self) -> dict[TableId, Traces]:
        status = self._store.get_note(KEY) or {}
        self._last_trigger = status.get("trigger", "")
        self._money = status.get("money")
        self._labels = labels_from_json(status.get("labels", {}))
        tables: Mapping[str, list[Any]] = status.get("tables", {})
        return {
            int(table_id): Traces(columns, files, frozenset(generated))
            for table_id, (columns, files, *generated) in tables.items()
        }

    def _reason(self, today: TableSchema, before: Traces, now: Traces) -> str | None:
        if before.files != now.files:
            return "its columns were altered and its rows written again"
        known = self._store.get_table_schema(today.id, LSN_MAX)
        if known is not None and _looks_the_same(known, today):
            return "a column was dropped and another one of its name and type created"
        return None

    def _copy_again(self, table: TableSchema, reason: str) -> None:
        state = self._store.get_table_replication_state(table.id)
        if state is None or isinstance(state, Init):
            return
        _log.warning("%s is copied again: %s", table.name, reason)
        self._store.request_copy(table.id)


@dataclass(frozen=True, slots=True)
class _Unannounced:
    """What may change of a table without a message in the stream."""

    #: Types that can be altered, by attnum; their values are read by what was known of them.
    types: Mapping[int, PgType] = field(default_factory=dict)
    #: What the labels of its enums are.
    labels: Labels = field(default_factory=dict)
    #: The attnums of the key under REPLICA IDENTITY FULL, where messages name every column; else
    #: None.
    key: tuple[int, ...] | None = None

    @classmethod
    def of(cls, table: TableSchema, labels: Labels) -> _Unannounced:
        types = {
            column.attnum: column.type
            for column in table.columns
            if column.type is not None and contains_composite(column.type)
        }
        of_enums = {enum.oid: labels[enum.oid] for enum in enums_of(table) if enum.oid in labels}
        key = _key(table) if table.replica_identity == "f" else None
        return cls(types, of_enums, key)


_NOTHING = _Unannounced()


def _key(table: TableSchema) -> tuple[int, ...]:
    attnums = {column.name: column.attnum for column in table.columns}
    return tuple(attnums[name] for name in table.key_columns)


def _reason_unannounced(known: TableSchema, today: TableSchema) -> str | None:
    if _has_altered_types(known, today):
        return "the type of a column was altered"
    if known.replica_identity == today.replica_identity == "f" and _key(known) != _key(today):
        return "it has another key"
    return None


def _has_altered_types(known: TableSchema, today: TableSchema) -> bool:
    columns = {column.attnum: column for column in today.columns}
    return any(
        old.type is not None
        and contains_composite(old.type)
        and (new := columns.get(old.attnum)) is not None
        and old.type_oid == new.type_oid
        and old.type != new.type
        for old in known.columns
    )


def _looks_the_same(known: TableSchema, today: TableSchema) -> bool:
    """Whether other columns than the known ones look like them in the stream."""

    def look(schema: TableSchema) -> list[tuple[str, int]]:
        return [(column.name, column.type_oid) for column in schema.columns]

    def attnums(schema: TableSchema) -> list[int]:
        return [column.attnum for column in schema.columns]

    return look(known) == look(today) and attnums(known) != attnums(today)
