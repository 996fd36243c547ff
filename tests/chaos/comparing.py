"""What must hold once everything is well again: each destination has what the source has, once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.chaos.world import World
from tests.support.database import PUBLICATION
from tests.support.killed_workers import destination_rows, query_destination, source_rows
from tests.support.random_owner import Table
from tests.support.random_owner import source_rows as rows_of_owner
from tests.support.random_shop import TABLES

#: Far more than it takes.
_PATIENCE_S = 240.0
_EVERYTHING = "insert, update, delete, truncate"


def settle(world: World) -> None:
    """Let the pipeline run until every destination is in step.

    A table that stopped for good is copied again, once: some changes of its owner ask for that.

    Raises:
        AssertionError: that doesn't come to pass; it says what is wrong.
    """
    world.changes.stop()
    world.owner.connect_again()
    world.source.execute(f"alter publication {PUBLICATION} set (publish = '{_EVERYTHING}')")
    # With a new row, Postgres sends a table's columns as they are.
    world.owner.touch()
    with psycopg.connect(world.source.dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    deadline = time.monotonic() + _PATIENCE_S
    copied: set[tuple[str, int]] = set()
    while True:
        world.workers.keep_alive()
        wrong = [
            f"{name}: {what}"
            for name, store in world.stores.items()
            for what in _why_not(world, world.members[name], store, goal)
        ]
        if not wrong:
            return
        assert time.monotonic() < deadline, "\n".join(wrong)
        for name, store in world.stores.items():
            _copy_what_stopped(name, store, copied)
        next(iter(world.stores.values())).wait_for_change(0.5)


def require_once(world: World) -> None:
    """No change was applied twice.

    Raises:
        AssertionError: some were.
    """
    for name, member in world.members.items():
        doubled = query_destination(
            member,
            "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
            " group by table_id, commit_lsn, ordinal having count(*) > 1",
        )
        assert doubled == [], f"{name}: {len(doubled)} changes were applied twice"


def _copy_what_stopped(name: str, store: CoordinatingStore, copied: set[tuple[str, int]]) -> None:
    for table_id, state in store.get_table_replication_states().items():
        if isinstance(state, Errored) and isinstance(state.retry, ManualRetry):
            assert (name, table_id) not in copied, f"{name}: {table_id} stopped again: {state}"
            print(f"         {name}: table {table_id} stopped: {state.reason}", flush=True)
            copied.add((name, table_id))
            store.request_copy(table_id)


def _why_not(
    world: World, member: PipelineConfig, store: CoordinatingStore, goal: Lsn
) -> Iterator[str]:
    """What is not in step yet; the rows are compared once nothing else is wrong."""
    progress = store.get_replication_progress(ApplyWorker())
    if progress is None or progress < goal:
        yield f"streamed to {progress}, not to {goal}"
        return
    states, published = store.get_table_replication_states(), _published(world)
    unready = {oid: states.get(oid) for oid in published if not isinstance(states.get(oid), Ready)}
    if unready:
        yield from (f"{published[oid]} is {state}" for oid, state in unready.items())
        return
    for table in TABLES:
        if destination_rows(member, table) != source_rows(world.source.dsn, table):
            yield f"{table} has other rows"
    for table in world.owner.published():
        yield from _difference(world, member, table)


def _published(world: World) -> Mapping[int, str]:
    return dict(
        world.source.query(
            "select format('%%I.%%I', schemaname, tablename)::regclass::oid::int8, tablename"
            " from pg_publication_tables where pubname = %s",
            [PUBLICATION],
        )
    )


def _difference(world: World, member: PipelineConfig, table: Table) -> Iterator[str]:
    try:
        columns = [
            name
            for (name,) in query_destination(
                member,
                "select column_name from information_schema.columns"
                f" where table_schema = '{table.schema}' and table_name = '{table.name}'",
            )
        ]
        if sorted(columns) != sorted(table.columns):
            yield f"{table.name} has the columns {columns} instead of {[*table.columns]}"
            return
        selected = ", ".join(f'cast("{name}" as varchar)' for name in sorted(columns))
        # Equal ones are rows of their own, though a table of Arrow data has no two of a name.
        named = ", ".join(
            f"{column} as c{place}" for place, column in enumerate(selected.split(", "))
        )
        here = sorted(query_destination(member, f"select {named} from {table.sql}"), key=repr)
    except (psycopg.Error, EtlError) as error:
        yield f"{table.name} can't be read: {error}"
        return
    if here != (there := rows_of_owner(world.source, table)):
        yield f"{table.name} has {here} instead of {there}"
