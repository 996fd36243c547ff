"""A destination under test: how the checks write to it, and how they read what it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities, Destination, WriteResult
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.modes import ADDED_COLUMNS, MODES
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    Change,
    Row,
    Transactions,
    batch,
    chunk,
    content,
    end_of_copy,
)
from etl_dagster.testing.values import differences, readable_rows

F = TypeVar("F", bound=Callable[..., None])
#: How many differences of a table a failure lists.
_MOST_SHOWN = 20


class Recorded(NamedTuple):
    """A change, as a destination keeps it that appends every change."""

    #: ``I``, ``U``, ``D`` or ``T`` (truncate).
    op: str
    #: `Position.commit_lsn` as a number: its `offset`.
    commit_lsn: int
    ordinal: int
    #: The values of an insert or update; None where they aren't kept, and then not compared.
    row: Mapping[str, Any] | None = None


def needs(*names: str) -> Callable[[F], F]:
    """Run the check only if the destination declares these capabilities and has these hooks.

    ``not mirror`` is for destinations without that capability, ``mode:append`` for those that keep
    tables in that mode.
    """

    def mark(check: F) -> F:
        vars(check)["etl_needs"] = names
        return check

    return mark


class DestinationHooks:
    """What a test class says about its destination.

    It must define `make_destination` and `read_rows`.
    """

    #: How long a write may take before a check fails, in seconds.
    patience_s: ClassVar[float] = 30.0
    #: Whether what was written outlives the destination object. If not, nothing is reopened.
    durable: ClassVar[bool] = True

    def make_destination(self, folder: Path) -> Destination:
        """A destination, not yet started, that writes to the same place for the same folder.

        Each check has an empty folder of its own. A second call with the same folder returns what
        a new process would have after the first one crashed.
        """
        raise NotImplementedError(
            "define make_destination(self, folder): it returns the destination to check"
        )

    def read_rows(self, destination: Destination, schema: TableSchema) -> Sequence[Row]:
        """The table's rows now, in any order, with Python values by column name.

        Read them as another process would: from the file, the server or the receiver, not from what
        the object remembers. Values may be spelled as in JSON (an int8 or a timestamp as its text),
        and nulls left out. Without `mirror`, only the rows that the copy brought.
        """
        raise NotImplementedError(
            "define read_rows(self, destination, schema): it returns the table's rows"
        )

    def capabilities(self, destination: Destination) -> Capabilities:
        """What is checked: by default what the destination declares.

        Return more if `read_rows` reads what another program makes of the destination's output,
        such as the tables of a receiver that applies the changes that it gets:
        ``replace(destination.capabilities, mirror=True)``.
        """
        return destination.capabilities

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        """Whether there is such a table, even if it is empty.

        Optional: without it, the checks that need it are skipped. A table without rows must exist,
        because people query it.
        """
        raise NotImplementedError

    def read_changes(self, destination: Destination, schema: TableSchema) -> Sequence[Recorded]:
        """The recorded changes of the table, in the order in which they are kept.

        Needed without `mirror`; optional for a mirror that also keeps a log of changes.
        """
        raise NotImplementedError

    def read_odd_values(
        self, destination: Destination, schema: TableSchema
    ) -> Sequence[tuple[Mapping[str, Any], str, str]]:
        """The values that the table's columns can't hold, each as: key of its row, column, text.

        The key is by column name, with Python values, and empty for a table without one. Needed to
        check the capability `odd_values`.
        """
        raise NotImplementedError

    def read_quarantined(self, destination: Destination, schema: TableSchema) -> Sequence[Row]:
        """The rows that are kept apart from the table, in the form of `read_rows`.

        Needed to check the capability `quarantine`.
        """
        raise NotImplementedError

    def reopen(self, destination: Destination, folder: Path) -> Destination:
        """The object of a new process, not yet started, after the process of this one was killed.

        By default the first object is left alone, never shut down, and `make_destination` is
        called. If the first one still holds a lock that the end of its process would have released,
        release it here, without writing anything.
        """
        return self.make_destination(folder)


class Subject:
    """The destination of one check."""

    def __init__(self, hooks: DestinationHooks, destination: Destination, folder: Path) -> None:
        self.hooks = hooks
        self.destination = destination
        self.folder = folder
        self.stream = Transactions()
        self._started: list[Destination] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.hooks.capabilities(self.destination)

    def start(self) -> None:
        self.destination.startup(MemoryStore())
        self._started.append(self.destination)

    def shut_down(self) -> None:
        while self._started:
            self._started.pop().shutdown()

    def another(self) -> Subject:
        """The same destination in another process, while this one continues."""
        self._skip_unless_durable()
        other = Subject(self.hooks, self.hooks.make_destination(self.folder), self.folder)
        other.start()
        self._started.append(other.destination)
        return other

    def reopen(self) -> None:
        """Continue with another object, as after a crash."""
        self._skip_unless_durable()
        self.destination = self.hooks.reopen(self.destination, self.folder)
        self.start()

    def _skip_unless_durable(self) -> None:
        if not self.hooks.durable:
            pytest.skip(f"{type(self.hooks).__name__} says that its destination isn't durable")

    # -- writing -------------------------------------------------------------------------------

    def copy(
        self,
        schema: TableSchema,
        *chunks: list[Row],
        copy_id: str = "copy-1",
        replay_from: int = 0,
    ) -> None:
        """A whole copy of a table."""
        self.destination.drop_table_for_copy(schema)
        for index, rows in enumerate(chunks):
            self.write_chunk(schema, index, rows, copy_id=copy_id)
        self.end_copy(schema, copy_id=copy_id, replay_from=replay_from)

    def write_chunk(
        self, schema: TableSchema, index: int, rows: list[Row], *, copy_id: str = "copy-1"
    ) -> None:
        self.write_rows(schema, chunk(copy_id, index, schema, rows))

    def end_copy(
        self, schema: TableSchema, *, copy_id: str = "copy-1", replay_from: int = 0
    ) -> None:
        self.write_rows(schema, end_of_copy(copy_id, replay_from))

    def write_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self.wait_durable(self.destination.write_table_rows(schema, rows))

    def write(self, *changes: Change) -> list[Change]:
        """Write a transaction; returns its changes with their positions."""
        committed = self.stream.commit(*changes)
        self.deliver(committed)
        return committed

    def deliver(
        self,
        changes: Sequence[Change],
        *,
        epoch: int = 0,
        apply_from: Mapping[TableId, Lsn] | None = None,
    ) -> None:
        """Write changes, perhaps again, as one batch."""
        self.write_batch(batch(changes, epoch=epoch, apply_from=apply_from))

    def write_batch(self, events: EventBatch) -> None:
        self.wait_durable(self.destination.write_events(events))

    def wait_durable(self, result: WriteResult) -> None:
        """Wait as the engine does; raises the error of the write, if it failed."""
        if result is None:
            return
        assert isinstance(result, Future), (
            f"a write must return None or a concurrent.futures.Future, not {result!r}"
        )
        try:
            result.result(self.hooks.patience_s)
        except FutureTimeout:
            if result.done():
                raise
            pytest.fail(
                f"a write was not durable within {self.hooks.patience_s} s. Complete the future "
                "that it returned; if the destination is only slow, set a larger `patience_s` in "
                "the test class"
            )

    # -- reading -------------------------------------------------------------------------------

    def rows(self, schema: TableSchema) -> list[Row]:
        """The rows of `read_rows`, with Python's own values; a column that is missing is null."""
        return self._readable(schema, self.hooks.read_rows(self.destination, schema))

    def kept(self, schema: TableSchema) -> list[Row]:
        """As `rows`, with the columns that the table's mode adds."""
        nulls = dict.fromkeys((*schema.column_names, *ADDED_COLUMNS[schema.mode]))
        found = self.hooks.read_rows(self.destination, schema)
        return self.readable(schema, [nulls | dict(row) for row in found])

    @staticmethod
    def readable(schema: TableSchema, rows: Sequence[Row]) -> list[Row]:
        """Rows with the columns that a mode adds, with Python's own values."""
        return [
            {name: _added(name, value) for name, value in row.items()}
            for row in readable_rows(schema, rows)
        ]

    def quarantined(self, schema: TableSchema) -> list[Row]:
        """The rows of `read_quarantined`, in the form of `rows`."""
        return self._readable(schema, self.hooks.read_quarantined(self.destination, schema))

    @staticmethod
    def _readable(schema: TableSchema, found: Sequence[Row]) -> list[Row]:
        nulls = dict.fromkeys(schema.column_names)
        return readable_rows(schema, [nulls | dict(row) for row in found])

    def exists(self, schema: TableSchema) -> bool:
        return self.hooks.table_exists(self.destination, schema)

    def can(self, hook: str) -> bool:
        """Whether the test class defines an optional hook."""
        return getattr(type(self.hooks), hook) is not getattr(DestinationHooks, hook)

    def recorded(self, schema: TableSchema) -> list[Recorded]:
        """The recorded changes; if the destination isn't transactional, each position once."""
        recorded = [Recorded(*entry) for entry in self.hooks.read_changes(self.destination, schema)]
        if self.capabilities.transactional:
            return recorded
        first = {(entry.commit_lsn, entry.ordinal): entry for entry in reversed(recorded)}
        return [entry for entry in recorded if first[entry.commit_lsn, entry.ordinal] is entry]

    # -- asserting -----------------------------------------------------------------------------

    def holds(self, schema: TableSchema, rows: Sequence[Row]) -> None:
        """The table has these rows and no other, in any order."""
        require_same_rows(schema, self.rows(schema), readable_rows(schema, rows))

    def holds_at_least_once(self, schema: TableSchema, rows: Sequence[Row]) -> None:
        """As `holds`; a destination without transactions may have some rows several times."""
        found = self.rows(schema)
        if not self.capabilities.transactional:
            found = list({repr(content([row])): row for row in found}.values())
        require_same_rows(schema, found, readable_rows(schema, rows))

    def has_recorded(self, changes: Sequence[Change]) -> None:
        """The tables' logs have these changes in order, each with its operation and position."""
        latest = {change.schema.id: change.schema for change in changes}
        for table_id, schema in latest.items():
            sent = [c for c in changes if c.schema.id == table_id and c.op != "R"]
            recorded = self.recorded(schema)
            assert [entry[:3] for entry in recorded] == [(c.op, c.lsn, c.ordinal) for c in sent], (
                f"the log of {schema.name} must have each change in the order of the stream, as "
                "(operation, commit LSN, ordinal)"
            )
            for entry, change in zip(recorded, sent, strict=True):
                if entry.row is not None and change.op in "IU":
                    told = {name: entry.row[name] for name in change.row if name in entry.row}
                    require_same_rows(
                        change.schema,
                        readable_rows(change.schema, [told]),
                        readable_rows(change.schema, [change.row]),
                    )


def _added(name: str, value: Any) -> Any:
    """A value of a column that a mode adds, with Python's own type; any other as it is."""
    if value is None:
        return None
    if name in ("_etl_commit_lsn", "_etl_ordinal", "_etl_xid"):
        return int(value)
    if name == "_etl_before":
        return json.loads(value) if isinstance(value, str) else value
    if name in ("_etl_deleted_at", "_etl_commit_time", "_etl_valid_from", "_etl_valid_to"):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC)
    return list(value) if name == "_etl_unchanged" else value


def require_same_rows(schema: TableSchema, found: Sequence[Row], expected: Sequence[Row]) -> None:
    """The rows are the expected ones, in any order."""
    wrong = differences(schema, found, expected)
    shown = wrong[:_MOST_SHOWN]
    if len(wrong) > len(shown):
        shown.append(f"and {len(wrong) - len(shown)} more")
    assert not wrong, "\n  ".join([f"{schema.name} isn't what the source has:", *shown])


class DestinationChecks(DestinationHooks):
    """The fixture that all checks of a destination build on."""

    @pytest.fixture
    def subject(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Subject]:
        subject = Subject(self, self.make_destination(tmp_path), tmp_path)
        for need in getattr(request.function, "etl_needs", ()):
            self._skip_unless(subject, need)
        subject.start()
        try:
            yield subject
        finally:
            subject.shut_down()

    @staticmethod
    def _skip_unless(subject: Subject, need: str) -> None:
        declared = {f.name: getattr(subject.capabilities, f.name) for f in fields(Capabilities)}
        declared |= {f"mode:{mode}": mode in subject.capabilities.modes for mode in MODES}
        name = need.removeprefix("not ")
        if name not in declared:
            if not subject.can(name):
                pytest.skip(f"define {name}(...) in {type(subject.hooks).__name__} to check this")
        elif declared[name] == need.startswith("not "):
            kind = type(subject.destination).__name__
            pytest.skip(f"{kind} {'declares' if declared[name] else 'does not declare'} {name}")
