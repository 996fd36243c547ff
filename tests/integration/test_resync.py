"""Copies next to old rows, which stay in service where the copy is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.model.states import DataSync, Errored, Ready
from etl_dagster.source.slots import apply_slot_name
from tests.integration.test_table_sync import (
    DOCUMENTS,
    Hooked,
    assert_in_step,
    table_id_of,
)
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def call(newest_database: Database, tmp_path: Path) -> Callable[..., str]:
    """Calls the command; gives what it prints."""
    sections = {
        "pipeline": "test",
        "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": "test.duckdb"},
    }
    file = tmp_path / "etl.yaml"
    file.write_text(yaml.safe_dump(sections), "utf-8")

    def invoke(*arguments: str) -> str:
        command, *rest = arguments
        return CliRunner().invoke(cli, [command, "-c", str(file), *rest]).output

    return invoke


def test_a_cancelled_copy_leaves_the_old_rows_in_service(
    newest_database: Database, make_config: MakeConfig, call: Callable[..., str]
) -> None:
    database = newest_database
    database.execute(DOCUMENTS, "vacuum analyze documents")
    config = make_config(database, copy={"chunk_rows": 30, "max_connections_per_table": 1})
    table_id = table_id_of(database)
    copied_again, again = threading.Event(), threading.Event()

    def after_chunk(index: int) -> None:
        if again.is_set() and index == 1:
            copied_again.set()
            wait_until(lambda: not isinstance(state(), DataSync))

    def state() -> Any:
        return store.get_table_replication_state(table_id)

    destination: Any = Hooked(build_destination(config), after_chunk)
    count = "select count(*) from public.documents"
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, destination=destination) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(60)
        assert "no copy of it can be cancelled" in call(
            "resync", "--cancel", "--yes", "public.documents"
        )
        before = rows(config, count)
        database.execute("delete from documents where id > 100")
        assert pipeline.wait_until_caught_up(60)
        after = rows(config, count)
        assert after < before
        again.set()
        assert "starts on it now" in call("resync", "--yes", "public.documents")
        assert copied_again.wait(60)

        assert "Done." in call("resync", "--cancel", "--yes", "public.documents")

        assert isinstance(state(), Errored)
        assert rows(config, count) == after
        assert database.slots() == [apply_slot_name(config.pipeline)]
        assert pipeline.wait_until_caught_up(60)
        again.clear()
        call("resync", "--yes", "public.documents")
        wait_until(lambda: isinstance(state(), Ready))
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
