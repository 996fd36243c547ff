"""A slot waits for transactions that were open before it; this is reported and can be stopped."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etl_dagster.cli.status import collect
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.runtime.checking.slots import check_apply_slot
from etl_dagster.source.connection import connect
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import PUBLICATION, Database
from tests.support.forked import etl_dagster
from tests.support.pipelines import running
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

RUN = ("run", "--until-caught-up")
MakeConfig = Callable[..., PipelineConfig]

_WAITING = (
    "select pid from pg_locks join pg_stat_activity using (pid)"
    " where locktype = 'transactionid' and not granted and datname = current_database()"
)


def wait_for(is_true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        threading.Event().wait(0.05)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_what_the_first_slot_waits_for_is_named(
    database: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
    is_prepared: bool,
) -> None:
    database.execute(
        "create table items (id int primary key)",
        f"create publication {PUBLICATION} for table items",
    )
    config = make_config(database, destination={"type": "memory"})
    name = f"it's {database.name}"
    blocker = database.connect(autocommit=False, application_name="month's end")
    pid = blocker.info.backend_pid
    blocker.execute("insert into items values (1)")
    if is_prepared:
        blocker.execute("prepare transaction '" + name.replace("'", "''") + "'")

    seen: list[str] = []

    def end_it() -> None:
        wait_for(lambda: "waits for" in caplog.text, "a word about the transaction")
        slot = collect(config, MemoryStore())["slot"]
        seen.extend(waited["transaction"] for waited in slot["waits_for"])
        with connect(config.source, application_name="test") as connection:
            seen.append(check_apply_slot(connection, config).message)
        if is_prepared:
            database.execute("commit prepared '" + name.replace("'", "''") + "'")
        else:
            blocker.commit()

    ending = threading.Thread(target=end_it)
    ending.start()
    destination = MemoryDestination()
    with caplog.at_level(logging.WARNING), running(config, destination=destination) as pipeline:
        ending.join()
        assert pipeline.wait_until_caught_up(60)
    blocker.close()

    if is_prepared:
        quoted = name.replace("'", "''")
        assert f"the prepared transaction {name!r}, open for " in caplog.text
        assert f"ROLLBACK PREPARED '{quoted}';" in caplog.text
    else:
        found = re.search(r"of backend (\d+) \(month's end\), open for \d+ s", caplog.text)
        assert found is not None
        assert int(found[1]) == pid
    of_status, of_doctor = seen
    for words in (of_status, of_doctor):
        assert repr(name) in words if is_prepared else f"of backend {pid} (month's end)" in words
    assert len(destination.rows("public.items")) == 1


def configure(database: Database, folder: Path) -> None:
    """Write a configuration into the folder."""
    (folder / "etl.yaml").write_text(
        json.dumps(
            {
                "pipeline": "test",
                "source": {"dsn": database.dsn, "publication": PUBLICATION},
                "destination": {"type": "duckdb", "path": "test.duckdb"},
            }
        )
    )


def waiting(database: Database) -> set[int]:
    """The backends that wait for a transaction to end."""
    return {pid for (pid,) in database.query(_WAITING)}


def ended_while_waiting(
    database: Database, folder: Path, number: signal.Signals
) -> tuple[int, str]:
    """Start it, and send the signal once its slot waits; exit code and what it wrote to stderr."""
    before = waiting(database)
    with etl_dagster(*RUN, cwd=folder) as process:
        try:
            wait_for(lambda: waiting(database) - before, "waiting for the transaction")
            process.send_signal(number)
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.wait(), err


def run_to_the_end(folder: Path) -> None:
    with etl_dagster(*RUN, cwd=folder) as process:
        try:
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.wait() == 0, err


def test_a_process_that_ends_while_its_first_slot_waits_leaves_nothing_in_the_way(
    database: Database, tmp_path: Path
) -> None:
    """The server continues making the slot for a process that was killed."""
    database.execute(
        "create table items (id int primary key)",
        f"create publication {PUBLICATION} for table items",
    )
    configure(database, tmp_path)
    with database.connect(autocommit=False) as blocker:
        blocker.execute("insert into items values (1)")
        code, err = ended_while_waiting(database, tmp_path, signal.SIGINT)
        assert code == 130, err
        assert "before the pipeline had started" in err
        code, err = ended_while_waiting(database, tmp_path, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert waiting(database)
        code, err = ended_while_waiting(database, tmp_path, signal.SIGTERM)
        assert code == 143, err
        blocker.commit()
    run_to_the_end(tmp_path)


def test_ctrl_c_while_a_slot_waits_ends_the_run_and_is_not_a_success(
    newest_database: Database, tmp_path: Path
) -> None:
    """A run until everything is caught up has not reached its end, and says how far it got."""
    database = newest_database
    database.execute(
        "create table items (id int primary key)",
        f"create publication {PUBLICATION} for all tables",
    )
    configure(database, tmp_path)
    run_to_the_end(tmp_path)
    database.execute("create table more (id int primary key)")
    with database.connect(autocommit=False) as blocker:
        blocker.execute("insert into items values (1)")
        code, err = ended_while_waiting(database, tmp_path, signal.SIGINT)
        blocker.rollback()

    assert code == 130, err
    assert "1 of 2 tables are ready" in err
    assert "Run the same command again" in err
    run_to_the_end(tmp_path)
