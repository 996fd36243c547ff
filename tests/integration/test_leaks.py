"""The search for secrets finds those that are planted in servers and in Dagster's storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import AssetMaterialization

from etl_dagster.demo.server import EmbeddedPostgres
from tests.support import dagster_in_process, search_for_leaks
from tests.support import database as database_module
from tests.support.database import Database
from tests.support.leaks import Leaks

PLANTED = "planted0123456789abcdef"


@pytest.fixture
def leaks(monkeypatch: pytest.MonkeyPatch) -> Leaks:
    """In place of the run's own, which would fail for what is found."""
    leaks = Leaks(PLANTED)
    for module in (dagster_in_process, database_module, search_for_leaks):
        monkeypatch.setattr(module, "LEAKS", leaks)
    return leaks


def test_the_rows_of_a_database_are_searched_before_it_is_dropped(
    server: EmbeddedPostgres, leaks: Leaks
) -> None:
    with Database.create(server) as database:
        database.execute(
            "create schema state",
            'create table state."the states" (id int, state jsonb)',
            "create table orders (id int)",
            f"""insert into state."the states" values (1, '{{"reason": "dsn {PLANTED}"}}')""",
            f"alter database {database.name} set default_transaction_read_only = on",
        )

    assert leaks.found == ["rows of state.the states"]


def test_the_log_of_a_server_is_searched_when_it_stops(tmp_path: Path, leaks: Leaks) -> None:
    (tmp_path / "server.log").write_text(f"STATEMENT:  create role a password '{PLANTED}'")

    EmbeddedPostgres(tmp_path).stop()

    assert leaks.found == [
        f"{tmp_path}/server.log: \"STATEMENT:  create role a password '(secret)'\""
    ]


def test_the_events_of_dagster_are_searched(leaks: Leaks) -> None:
    with dagster_in_process.searched_instance() as instance:
        event = AssetMaterialization("orders", metadata={"source": f"dsn {PLANTED}"})
        instance.report_runless_asset_event(event)

    assert any("/storage.db" in leak or "/index.db" in leak for leak in leaks.found), leaks.found
