"""Pipelines in shards that run inside of a test, and moves between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from etl_dagster.assembly import build_destination, opened_store
from etl_dagster.cli.move import _bring_up
from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import TableState
from etl_dagster.runtime.moving import Move, Shard
from etl_dagster.source.control import SourceControl
from tests.support.database import Database

TABLES = ("orders", "events", "items")


class Dies(BaseException):
    """The process is over, as far as a test goes."""


def prepare(database: Database) -> None:
    """Three tables: `orders` and `items` in one publication, `events` in another."""
    for table in TABLES:
        database.execute(
            f"create table {table} (id bigint primary key, n int)",
            f"insert into {table} select i, 0 from generate_series(1, 10) i",
        )
    database.execute(
        "create publication etl_pub for table orders, items",
        "create publication events_pub for table events",
    )


def table_id(database: Database, name: str) -> TableId:
    [(oid,)] = database.query("select %s::regclass::oid::bigint", [name])
    return int(oid)


def states(config: PipelineConfig, shard: str) -> dict[TableId, TableState]:
    with opened_store(config.members()[shard]) as store:
        return dict(store.get_table_replication_states())


def move(
    config: PipelineConfig,
    database: Database,
    table: str,
    of: str,
    to: str,
    *,
    meanwhile: Sequence[str] = (),
) -> Lsn:
    """As the command does it.

    Args:
        meanwhile: statements that commit once the one shard was brought up to now, and before the
            publications change.
    """

    def bring_up(goal: Lsn) -> None:
        _bring_up(shards[of], goal)
        database.execute(*meanwhile)

    control = SourceControl(config.source, application_name="etl_dagster move test")
    with ExitStack() as opened:
        opened.callback(control.close)
        shards = {
            name: Shard(each, opened.enter_context(opened_store(each)))
            for name, each in config.members().items()
        }
        destination = build_destination(shards[to].config)
        opened.callback(destination.shutdown)
        oid = table_id(database, table)
        moved = Move(shards[of], shards[to], control, destination).run(
            {oid: f"public.{table}"}, bring_up
        )
        return moved[oid]


def dying_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool) -> None:
    """Have a move die before or after it has called a function."""
    function: Callable[..., object] = getattr(owner, name)

    def die(*args: object, **kwargs: object) -> None:
        if after:
            function(*args, **kwargs)
        raise Dies

    monkeypatch.setattr(owner, name, die)
