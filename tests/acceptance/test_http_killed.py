"""Sender and server are killed at random moments while rows change at random; what the server then
has is what the source has."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.model.json_values import row_from_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.random_shop import TABLES, create_tables, is_caught_up, workload
from tests.support.receiver import Receiver
from tests.support.worker_process import WorkerProcess

ROWS = 2000
HMAC_SECRET = make_secret("hush")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_has_what_the_source_has_though_both_sides_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(newest_database.dsn, ROWS)
    config = _config(newest_database.dsn)
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        Receiver(tmp_path, "--chaos", "0.02", "--hmac-secret", HMAC_SECRET) as receiver,
        WorkerProcess(
            "tests.support.http_worker",
            {
                "config": config,
                "kind": "http",
                "settings": {
                    "url": receiver.url,
                    "hmac_secret": HMAC_SECRET,
                    "gzip": True,
                    "timeout_s": 5,
                    "max_body_bytes": 30_000,
                },
            },
            tmp_path,
        ) as sender,
        workload(newest_database.dsn, rng.randrange(2**32), ROWS) as changes,
    ):
        for kills in (2, 3):  # while tables are copied, and then while changes are streamed
            while sender.kills < kills or receiver.kills < kills:
                receiver.start()
                sender.start()
                # Something happened, or all is idle: the moment after is what is random.
                store.wait_for_change(2)
                time.sleep(rng.uniform(0, 0.7))
                both: list[WorkerProcess | Receiver] = [sender, receiver]
                rng.choice([side for side in both if side.kills < kills]).kill()
            _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        changes.stop()
        _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        _assert_in_step(store, newest_database.dsn, receiver)
        doubled = [change for change, n in Counter(receiver.changelog()).items() if n > 1]
        assert doubled == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_forty_lines_survive_a_server_that_is_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    """The destination and the receiver of the tutorial."""
    assert len(Path("tests/support/forty_lines.py").read_text().splitlines()) <= 40
    rng = random.Random()
    create_tables(newest_database.dsn, ROWS)
    config = _config(newest_database.dsn)
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        Receiver(tmp_path, module="dying_receiver") as receiver,
        WorkerProcess(
            "tests.support.http_worker",
            {"config": config, "kind": "forty_lines", "settings": {"url": receiver.url}},
            tmp_path,
        ) as sender,
        workload(newest_database.dsn, rng.randrange(2**32), ROWS) as changes,
    ):
        while receiver.kills < 3 or receiver.starts < 6:
            receiver.start()
            sender.start()
            store.wait_for_change(1)
            time.sleep(rng.uniform(0, 0.4))
            if rng.random() < 0.5:
                receiver.kill()
        changes.stop()
        _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        assert sender.starts == 1
        _assert_in_step(store, newest_database.dsn, receiver)


def _run_until_caught_up(
    store: CoordinatingStore, dsn: str, sender: WorkerProcess, receiver: Receiver
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    while not is_caught_up(store, goal):
        receiver.start()
        sender.start()
        store.wait_for_change(0.5)
    receiver.start()


# -- comparing -----------------------------------------------------------------------------------


def _assert_in_step(store: CoordinatingStore, dsn: str, receiver: Receiver) -> None:
    store.load_table_schemas()
    schemas = {schema.table_name: schema for schema in store.get_table_schemas()}
    assert schemas.keys() == TABLES.keys()
    for name, schema in schemas.items():
        arrived = receiver.rows(schema.name)
        assert arrived is not None
        found = _content(row_from_json(schema.columns, row) for row in arrived)
        assert found == _source_content(dsn, schema), name


def _source_content(dsn: str, schema: TableSchema) -> Counter[tuple[tuple[str, Any], ...]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        # As the server has it, too.
        connection.adapters.register_loader("jsonb", TextLoader)
        statement = sql.SQL("select * from {}").format(sql.Identifier(schema.table_name))
        return _content(connection.execute(statement).fetchall())


def _content(rows: Iterable[dict[str, Any]]) -> Counter[tuple[tuple[str, Any], ...]]:
    return Counter(tuple(sorted(row.items())) for row in rows)


# -- the source ----------------------------------------------------------------------------------


def _config(dsn: str) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destination": {"type": "memory"},  # stands in for the one that the worker makes
        "batch": {"max_fill_ms": 50},
        "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
        "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
    }
