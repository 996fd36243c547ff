"""A pipeline in one's own Python process: one import, one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

import etl_dagster
from tests.support.database import Database

MakeConfig = Callable[..., etl_dagster.PipelineConfig]

TABLES = """
    create table orders (id int primary key, note text);
    insert into orders select i, 'note ' || i from generate_series(1, 1000) i;
    create publication etl_pub for all tables
"""


def _ids(file: Path) -> list[int]:
    with duckdb.connect(str(file), read_only=True) as connection:
        return [
            row[0]
            for row in connection.execute("select id from public.orders order by id").fetchall()
        ]


def test_one_call_copies_the_tables_and_ends(
    newest_database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    newest_database.execute(TABLES)
    config = make_config(newest_database)

    statuses = etl_dagster.run(config, until_caught_up=True)

    assert [status.phase for status in statuses.values()] == ["stopped"]
    assert list(statuses) == ["duckdb"]
    assert statuses["duckdb"].tables["public.orders"].row_count == 1000
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == []
    assert _ids(config.destination.path) == list(range(1, 1001))  # type: ignore[attr-defined]


def test_a_block_streams_to_several_destinations_and_can_run_again_after_a_failure(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(TABLES)
    files = {name: tmp_path / f"{name}.duckdb" for name in ("one", "other")}
    config = etl_dagster.parse_config(
        {
            "pipeline": "test",
            "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
            "destinations": {
                name: {"type": "duckdb", "path": str(path)} for name, path in files.items()
            },
        },
        {},
    )

    def stream_and_fail() -> None:
        with etl_dagster.running(config) as pipeline:
            assert pipeline.wait_until_caught_up(timeout_s=60)
            newest_database.execute("delete from orders where id > 10")
            assert pipeline.wait_until_caught_up(timeout_s=60)
            assert set(pipeline.statuses()) == {"one", "other"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream_and_fail()

    assert [_ids(path) for path in files.values()] == [list(range(1, 11))] * 2
    assert "apply" not in {thread.name.partition(" ")[0] for thread in threading.enumerate()}
    etl_dagster.run(config, until_caught_up=True)
