"""What an earlier run left: doctor and status tell whether the pipeline can continue from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import PublicationMissing, PublicationRecreated, SlotInvalidated
from etl_dagster.runtime.checking.check import Check
from etl_dagster.source.slots import (
    Slot,
    apply_slot_name,
    group_slot_name,
    require_usable,
    table_sync_slot_name,
)
from etl_dagster.stores.postgres import PostgresStore
from tests.support.database import Database
from tests.support.forked import etl_dagster
from tests.support.pipelines import assert_table_in_step, rows, running
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

TABLES = (
    "create table items (id int primary key, n int not null)",
    "insert into items select i, 0 from generate_series(1, 100) i",
    "create publication etl_pub for table items",
)


class Folder:
    """A folder with etl.yaml, and the command line in it."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path = path
        self.write(
            pipeline="test",
            source={"dsn": database.dsn, "publication": "etl_pub"},
            destination={"type": "duckdb", "path": "shop.duckdb"},
        )

    def write(self, **sections: Any) -> None:
        (self.path / "etl.yaml").write_text(json.dumps(sections))

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and all that was printed."""
        with etl_dagster(*arguments, cwd=self.path) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        return process.wait(), out + err


@contextmanager
def answering() -> Iterator[str]:
    """A server that answers, if only that it does not know the method."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/etl"
        server.shutdown()


def test_a_destination_that_was_removed_is_refused_on_the_command_line(
    newest_database: Database, tmp_path: Path
) -> None:
    """The whole course: messages, exit codes, and the way back."""
    newest_database.execute(*TABLES)
    folder = Folder(tmp_path, newest_database)
    assert folder.run("run", "--until-caught-up", "--plain")[0] == 0
    file = tmp_path / "shop.duckdb"
    file.unlink()
    newest_database.execute("insert into items values (1001, 0)")

    code, said = folder.run("run", "--until-caught-up", "--plain")
    assert code != 0
    assert "shop.duckdb holds nothing of the pipeline 'test'" in said
    assert "reset --all" in said
    assert not file.exists()
    code, said = folder.run("doctor")
    assert code == 1
    assert "holds nothing of the pipeline" in said

    # Another type of destination is not a way out.
    with answering() as url:
        folder.write(
            pipeline="test",
            source={"dsn": newest_database.dsn, "publication": "etl_pub"},
            destination={"type": "http", "url": url},
        )
        code, said = folder.run("run", "--until-caught-up", "--plain")
    assert code != 0
    assert "has written to duckdb" in said

    Folder(tmp_path, newest_database)
    assert folder.run("reset", "--all", "--yes")[0] == 0
    assert folder.run("run", "--until-caught-up", "--plain")[0] == 0
    code, said = folder.run("query", "select count(*) as n from public.items")
    assert "101" in said


@pytest.fixture
def config(database: Database, make_config: MakeConfig) -> PipelineConfig:
    database.execute(*TABLES)
    config = make_config(database)
    catch_up(config)
    return config


def catch_up(config: PipelineConfig) -> None:
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)


def errors(config: PipelineConfig) -> dict[str, Check]:
    return {check.name: check for check in all_checks(config) if check.level == "error"}


def test_the_doctor_reports_a_slot_that_is_gone_or_was_advanced(
    database: Database, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # With a thousand tables, that would read a thousand times what is known of all of them.
        patch.setattr(PostgresStore, "get_table_schema", None)
        assert errors(config) == {}
    name = apply_slot_name(config.pipeline)
    database.query("select pg_drop_replication_slot(%s)", [name])
    assert "is gone from the source, but 1 tables" in errors(config)["slot"].message
    assert [check.name for check in all_checks(config)].count("slot") == 1

    database.query("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    found = errors(config)["slot"]
    assert "was confirmed up to" in found.message
    assert "reset --all" in found.solution


def test_a_table_that_stopped_during_its_copy_is_shown_with_its_slot(
    database: Database, config: PipelineConfig, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from etl_dagster.cli import cli

    # Something is in the way at the destination.
    database.execute("create table taken (id int primary key)")
    import duckdb

    assert config.destination.type == "duckdb"
    with duckdb.connect(str(config.destination.path)) as connection:
        connection.execute("create table public.taken (a int)")
    database.execute("alter publication etl_pub add table taken")
    catch_up(config)

    [(table_id,)] = database.query("select 'taken'::regclass::oid::int")
    slot = table_sync_slot_name(config.pipeline, table_id)
    assert slot in database.slots()
    found = errors(config)["stopped table"]
    assert found.message.startswith("public.taken: ")
    assert f"its slot {slot!r} keeps " in found.message

    (tmp_path / "etl.yaml").write_text(
        json.dumps(
            {
                "pipeline": "test",
                "source": {"dsn": database.dsn, "publication": "etl_pub"},
                "destination": {"type": "duckdb", "path": str(config.destination.path)},
            }
        )
    )
    group = group_slot_name(config.pipeline, table_id)
    database.query("select pg_create_logical_replication_slot(%s, 'pgoutput')", [group])
    arguments = ["--config", str(tmp_path / "etl.yaml")]
    status = CliRunner().invoke(cli, ["status", *arguments])
    assert f"{slot}: reserved, keeps" in status.output
    assert f"{group}: reserved, keeps" in status.output
    doctor = CliRunner().invoke(cli, ["doctor", *arguments])
    assert doctor.exit_code == 1
    assert "1 error: the pipeline runs without what is named above." in doctor.output
    listed = " ".join(doctor.output.split())
    for name in (slot, group):
        assert f"{name} keeps" in listed
    assert "nothing reads it now" in listed
    # The other table continues, and a group's slot without a group is dropped.
    database.execute("insert into items values (1001, 0)")
    catch_up(config)
    assert_table_in_step(database, config, "items")
    assert group not in database.slots()


def test_a_recreated_publication_is_not_mistaken_for_an_unreachable_server(
    database: Database, config: PipelineConfig
) -> None:
    """Postgres 18 sends on without it, and the tables are copied again; older ones can't send."""
    database.execute(
        "drop publication etl_pub",
        "insert into items values (1001, 0)",
        "create publication etl_pub for table items",
        "insert into items values (1002, 0)",
    )
    [(version,)] = database.query("select current_setting('server_version_num')::int")
    if version >= 180000:
        catch_up(config)
        assert_table_in_step(database, config, "items")
        return
    with pytest.raises(PublicationRecreated, match="'etl_pub' did not exist") as refused:
        catch_up(config)
    assert "reset --all" in refused.value.solution

    from etl_dagster.assembly import opened_store
    from etl_dagster.runtime.slot import drop_pipeline_slots
    from etl_dagster.source.control import SourceControl

    with opened_store(config) as store:
        store.reset_for_resync()
        control = SourceControl(config.source, application_name="test")
        drop_pipeline_slots(control, config)
        control.close()
    catch_up(config)
    assert_table_in_step(database, config, "items")


def test_a_missing_publication_is_reported_as_missing(
    database: Database, config: PipelineConfig
) -> None:
    database.execute("drop publication etl_pub", "insert into items values (1001, 0)")
    with pytest.raises(PublicationMissing):
        catch_up(config)
    assert rows(config, "select count(*) from public.items") == [(100,)]


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("idle_timeout", "idle_replication_slot_timeout"),
        ("wal_level_insufficient", "wal_level"),
        ("wal_removed", "max_slot_wal_keep_size"),
        (None, "max_slot_wal_keep_size"),
    ],
)
def test_the_advice_for_a_lost_slot_names_the_setting_that_lost_it(
    reason: str | None, advice: str
) -> None:
    slot = Slot("it", "pgoutput", "shop", False, None, "lost", None, None, 0, reason)
    with pytest.raises(SlotInvalidated) as refused:
        require_usable(slot)
    assert advice in refused.value.solution
    assert "reset --all" in refused.value.solution
