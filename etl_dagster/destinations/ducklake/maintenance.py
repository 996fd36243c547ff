"""Maintenance of a lake: small writes to files, small files together, old snapshots away.

Each step is a turn of its own, so a pipeline that writes the lake waits for one step at most, and
whatever it writes in between is kept: DuckLake refuses a step that a write has overtaken, and the
step is left for the next time.
"""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import duckdb

from etl_dagster.destinations.ducklake.attaching import NAME, LakePlace
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.ducklake.failures import LakeConflict
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.destinations.sql.dialect import literal, quote
from etl_dagster.destinations.sql.ledger_tables import TABLES

#: Files that one turn merges, of one table.
_MERGED_AT_ONCE: Final = 100
#: So much of a file is deleted when it is worth writing again.
_DELETED_SHARE: Final = 0.3
#: What no snapshot needs is kept for this long, for readers and writers that are under way.
KEPT: Final = timedelta(days=1)


@dataclass
class Maintenance:
    """What was done, or would be."""

    is_dry_run: bool
    older_than_s: float
    #: By ``schema.table``.
    flushed_rows: dict[str, int] = field(default_factory=dict)
    #: Files before and after, by table, where these changed.
    merged_files: dict[str, tuple[int, int]] = field(default_factory=dict)
    expired_snapshots: int = 0
    deleted_files: int = 0
    #: Steps that a write of the pipeline has overtaken; the next time does them.
    postponed: list[str] = field(default_factory=list)
    snapshots: int = 0
    files: int = 0
    bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Maintainer:
    """Maintains one lake.

    Args:
        older_than: snapshots that are older are expired; the newest one never is.
        now: the time.
    """

    def __init__(
        self,
        lake: Lake,
        *,
        older_than: timedelta,
        is_dry_run: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lake = lake
        self._older_than = older_than
        self._now = now
        self.done = Maintenance(is_dry_run, older_than.total_seconds())

    def run(self) -> Maintenance:
        """Do all of it.

        Raises:
            DestinationError: there is no lake, or it can't be reached or written.
        """
        self._lake.require()
        tables = self._ask(_tables)
        if self.done.is_dry_run:
            self._ask(self._look)
        else:
            for table in tables:
                self._step(f"flush {'.'.join(table)}", partial(self._flush, table))
            for table in tables:
                self._step(f"merge {'.'.join(table)}", partial(self._merge, table))
            self._step("write the ledger again", _rewrite_ledger)
        self._step("expire snapshots", self._expire)
        self._step("delete files", self._delete)
        self._ask(self._count)
        return self.done

    # -- steps ---------------------------------------------------------------------------------

    def _step(self, name: str, work: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        try:
            self._ask(work)
        except LakeConflict:
            self.done.postponed.append(name)

    def _ask(self, work: Callable[[duckdb.DuckDBPyConnection], Any]) -> Any:
        with self._lake.turn() as connection:
            return work(connection)

    def _look(self, connection: duckdb.DuckDBPyConnection) -> None:
        """What is in the catalog and would be flushed."""
        for schema_name, name in _tables(connection):
            columns = connection.execute(f"DESCRIBE {quote(NAME, schema_name, name)}").fetchall()
            if "filename" in (column[0].lower() for column in columns):
                continue  # it hides where its rows are
            rows = _inlined(connection, schema_name, name)
            if rows:
                self.done.flushed_rows[f"{schema_name}.{name}"] = rows

    def _flush(self, table: tuple[str, str], connection: duckdb.DuckDBPyConnection) -> None:
        found = connection.execute(
            f"SELECT rows_flushed FROM ducklake_flush_inlined_data('{NAME}', "
            f"schema_name => {literal(table[0])}, table_name => {literal(table[1])})"
        ).fetchall()
        rows = sum(count for (count,) in found)
        if rows:
            self.done.flushed_rows[".".join(table)] = rows

    def _merge(self, table: tuple[str, str], connection: duckdb.DuckDBPyConnection) -> None:
        schema_name, name = table
        before = _file_count(connection, table)
        if before == 0:
            return
        named = f"{literal(name)}, schema => {literal(schema_name)}"
        connection.execute(
            f"CALL ducklake_rewrite_data_files('{NAME}', {named}, "
            f"delete_threshold => {_DELETED_SHARE})"
        )
        connection.execute(
            f"CALL ducklake_merge_adjacent_files('{NAME}', {named}, "
            f"max_compacted_files => {_MERGED_AT_ONCE})"
        )
        after = _file_count(connection, table)
        if after != before:
            self.done.merged_files[".".join(table)] = (before, after)

    def _expire(self, connection: duckdb.DuckDBPyConnection) -> None:
        expired = connection.execute(
            f"CALL ducklake_expire_snapshots('{NAME}', older_than => "
            f"{_moment(self._now() - self._older_than)}, dry_run => {self.done.is_dry_run})"
        ).fetchall()
        self.done.expired_snapshots = len(expired)

    def _delete(self, connection: duckdb.DuckDBPyConnection) -> None:
        before = f"older_than => {_moment(self._now() - KEPT)}, dry_run => {self.done.is_dry_run}"
        for function in ("ducklake_cleanup_old_files", "ducklake_delete_orphaned_files"):
            deleted = connection.execute(f"CALL {function}('{NAME}', {before})").fetchall()
            self.done.deleted_files += len(deleted)

    def _count(self, connection: duckdb.DuckDBPyConnection) -> None:
        [(snapshots,)] = connection.execute(
            f"SELECT count(*) FROM ducklake_snapshots('{NAME}')"
        ).fetchall()
        [(files, size)] = connection.execute(
            "SELECT coalesce(sum(file_count), 0), coalesce(sum(file_size_bytes), 0) "
            f"FROM ducklake_table_info('{NAME}')"
        ).fetchall()
        self.done.snapshots, self.done.files, self.done.bytes = snapshots, int(files), int(size)


def maintain(
    config: DuckLakeDestinationConfig,
    *,
    older_than: timedelta = timedelta(days=7),
    is_dry_run: bool = False,
) -> Maintenance:
    """Maintain the lake of a configuration, also while a pipeline writes it.

    Args:
        older_than: snapshots that are older are expired.
        is_dry_run: change nothing, and say what would be.

    Raises:
        DestinationError: there is no lake, or it can't be reached or written.
    """
    lake = Lake(LakePlace.of(config), timeout_s=config.lock_timeout_s)
    try:
        return Maintainer(lake, older_than=older_than, is_dry_run=is_dry_run).run()
    finally:
        lake.close()


def _tables(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """The tables of the source that have all their rows; copies under way are left alone."""
    return connection.execute(
        "SELECT k.schema_name, k.table_name FROM _etl.tables AS k ORDER BY 1, 2"
    ).fetchall()


def _inlined(connection: duckdb.DuckDBPyConnection, schema_name: str, name: str) -> int:
    """Rows of the table that are in no file."""
    table = quote(NAME, schema_name, name)
    [(count,)] = connection.execute(
        f"SELECT count(*) FROM {table} WHERE starts_with(filename, 'ducklake_inlined_data_')"
    ).fetchall()
    return int(count)


def _file_count(connection: duckdb.DuckDBPyConnection, table: tuple[str, str]) -> int:
    [(count,)] = connection.execute(
        f"SELECT count(*) FROM ducklake_list_files('{NAME}', {literal(table[1])}, "
        f"schema => {literal(table[0])})"
    ).fetchall()
    return int(count)


def _rewrite_ledger(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the ledger's tables again, without the rows that they had before.

    Of each row that was replaced, the catalog keeps the earlier ones, and only a flush removes
    them; but then each batch would read a file.
    """
    connection.execute("BEGIN TRANSACTION")
    for name in _of_ledger(connection):
        copy = f"_etl.{quote(name + '__again')}"
        connection.execute(f"CREATE TABLE {copy} AS FROM _etl.{quote(name)}")
        connection.execute(f"DROP TABLE _etl.{quote(name)}")
        connection.execute(f"ALTER TABLE {copy} RENAME TO {quote(name)}")
    connection.execute("COMMIT")


def _of_ledger(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    found = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() "
        "AND schema_name = '_etl' ORDER BY 1"
    ).fetchall()
    # Where every change is kept, files are right.
    return (name for (name,) in found if name in (TABLES | {"turns"}) - {"changelog"})


def _moment(time: datetime) -> str:
    return f"TIMESTAMPTZ {literal(time.isoformat(timespec='microseconds'))}"
