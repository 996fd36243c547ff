"""Rows that differ are replaced while the stream continues, and nothing else is copied."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import duckdb
import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.errors import DestinationRestored, DestinationUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.repair_requests import RepairOutcome, repair_outcome, request_repairs
from etl_dagster.runtime.table_ids import find_table_ids
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

#: By table, its key and what is done to the destination's rows: two each are missing, changed, and
#: too many.
TABLES = {
    "numbers": ("id numeric(20, 3) primary key", "i / 8.0"),
    "texts": ("id text primary key", "'ä key ' || i"),
    "uuids": ("id uuid primary key", "md5(i::text)::uuid"),
    "moments": (
        "id timestamptz primary key",
        "to_timestamp(1600000000 + i * 420)",
    ),
    "pairs": ("a int, id text, primary key (a, id)", "i % 7, 'k' || i"),
}
COUNT = 500


def create(database: Database) -> None:
    for name, (key, value) in TABLES.items():
        database.execute(
            f"create table {name} (note text, {key}, paid numeric, seen date)",
            f"insert into {name} select nullif('note ' || i, 'note 7'), {value}, i / 7.0, "
            f"case when i % 5 = 0 then current_date end "
            f"from generate_series(1, {COUNT}) i",
        )
    database.execute(
        "create table logs (page text, at int)",
        "alter table logs replica identity full",
        "insert into logs select 'p', i from generate_series(1, 50) i",
        "create publication etl_pub for all tables",
    )


def spoil(name: str, random: Random) -> list[str]:
    """Statements that change rows of a table behind the pipeline's back, at either destination."""
    low = random.randrange(20, COUNT - 20)
    return [
        f"update public.{name} set note = 'spoilt' where note in ('note {low}', 'note {low + 1}')",
        f"update public.{name} set note = null where note = 'note {low + 2}'",
        f"delete from public.{name} where note in ('note {low + 3}', 'note {low + 4}')",
    ]


#: Rows that the source doesn't have, one for each table.
EXTRA = {
    "numbers": "insert into public.numbers (id, note) values (-5.125, 'x')",
    "texts": "insert into public.texts (id, note) values ('zzz', 'x'), ('', 'y')",
    "uuids": "insert into public.uuids (id) values ('00000000-0000-0000-0000-000000000001')",
    "moments": "insert into public.moments (id) values ('1999-01-01')",
    "pairs": "insert into public.pairs (a, id) values (-1, 'k1'), (99, '')",
}


class Counting(DuckDBDestination):
    """Tells which tables were copied."""

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self.copied = [*getattr(self, "copied", ()), schema.name]
        super().write_table_rows(schema, rows)


@contextmanager
def loading(database: Database, statement: str) -> Iterator[None]:
    """Run a statement again and again, with a number."""
    stop = threading.Event()

    def load() -> None:
        with database.connect() as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute(statement.format(number=number, near=1 + number % COUNT))

    worker = threading.Thread(target=load)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def repaired(
    store: CoordinatingStore, config: PipelineConfig, names: list[str]
) -> dict[str, RepairOutcome]:
    """Ask for the repair of these tables, and wait until they are streamed again."""
    ids = find_table_ids(config, store)
    wanted = {ids[f"public.{name}"]: name for name in names}
    requests = request_repairs(store, list(wanted))
    return await_repairs(store, requests, wanted)


def await_repairs(
    store: CoordinatingStore, requests: Mapping[int, str], wanted: Mapping[int, str]
) -> dict[str, RepairOutcome]:
    def is_done() -> bool:
        store.load_table_replication_states()
        states = store.get_table_replication_states()
        return all(isinstance(states[table_id], Ready) for table_id in wanted)

    wait_until(lambda: all(repair_outcome(store, t, r) for t, r in requests.items()))
    wait_until(is_done)
    outcomes = {wanted[t]: repair_outcome(store, t, request) for t, request in requests.items()}
    return {name: outcome for name, outcome in outcomes.items() if outcome is not None}


def counts(outcome: RepairOutcome) -> tuple[str, int, int, int]:
    return outcome.by, outcome.missing, outcome.extra, outcome.changed


def test_rows_that_differ_are_replaced_under_load(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Also those that the load changes meanwhile; and the tables aren't copied again."""
    database = newest_database
    create(database)
    config = make_config(database, copy={"chunk_rows": 100})
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
        with duckdb.connect(str(tmp_path / "test.duckdb")) as file:
            for number, name in enumerate(TABLES):
                for statement in (*spoil(name, Random(number)), EXTRA[name]):
                    file.execute(statement)
            file.execute(
                "insert into public.texts select * from public.texts where note = 'note 9'"
            )
            file.execute('delete from public.logs where "at" < 5')
        destination = Counting(tmp_path / "test.duckdb")
        load = (
            "update pairs set note = 'load {number}', id = id || 'y' where note = 'note {near}'; "
            "insert into texts values ('load {number}', 'load {number}'); "
            "delete from numbers where note = 'note {near}'"
        )
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            destination.copied = []
            with loading(database, load):
                found = repaired(store, config, [*TABLES, "logs"])
            assert pipeline.wait_until_caught_up(60)
            assert destination.copied == ["public.logs"] * 2
        assert (found["logs"].by, found["logs"].reason) == ("copy", "it has no key")
        assert counts(found["uuids"]) == ("ranges", 2, 1, 3)
        assert counts(found["moments"]) == ("ranges", 2, 1, 3)
        assert {name: each.by for name, each in found.items() if name != "logs"} == dict.fromkeys(
            TABLES, "ranges"
        )
        assert sum(each.missing for each in found["uuids"].ranges) == 2
        for name in (*TABLES, "logs"):
            assert_table_in_step(database, config, name)
    assert len(database.slots()) == 1


class Dying(DuckDBDestination):
    """Fails at one call, before or after it was carried out; never twice."""

    dies_at: tuple[str, bool] | None = None

    def _die(self, name: str, call: Callable[[], None]) -> None:
        at, self_dies = self.dies_at, self.dies_at is not None and self.dies_at[0] == name
        if self_dies:
            self.dies_at = None
        if at is not None and self_dies and not at[1]:
            raise DestinationUnreachable("killed")
        call()
        if at is not None and self_dies:
            raise DestinationUnreachable("killed")

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        self._die("begin_repair", lambda: super(Dying, self).begin_repair(schema, repair_id))

    def write_repair(self, changes: TableChanges, repair_id: str) -> None:
        self._die("write_repair", lambda: super(Dying, self).write_repair(changes, repair_id))

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        self._die(
            "end_repair", lambda: super(Dying, self).end_repair(schema, repair_id, replay_from)
        )


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("phase", ["begin_repair", "write_repair", "end_repair"])
def test_an_interrupted_repair_is_repeated(
    newest_database: Database,
    make_config: MakeConfig,
    tmp_path: Path,
    phase: str,
    is_done: bool,
) -> None:
    database = newest_database
    database.execute(
        "create table people (id int primary key, note text)",
        "insert into people select i, 'n' || i from generate_series(1, 100) i",
        "create publication etl_pub for all tables",
    )
    config = make_config(database)
    destination = Dying(tmp_path / "test.duckdb")
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, destination=destination) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(60)
        with destination._transaction() as session:
            session.execute("delete from public.people where id < 3")
            session.execute("insert into public.people values (-1, 'x')")
        destination.dies_at = phase, is_done
        with loading(database, "update people set note = 'l{number}' where id = {near} % 100"):
            found = repaired(store, config, ["people"])
        assert destination.dies_at is None
        assert pipeline.wait_until_caught_up(60)
        assert found["people"].by == "ranges"
    assert_table_in_step(database, config, "people")


def test_rows_that_differ_in_a_postgres_destination_are_replaced_too(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    create(database)
    with Database.create(database.server) as other:
        config = make_config(database, destination={"type": "postgres", "dsn": other.dsn})
        with (
            closing(build_store(config)) as store,  # type: ignore[type-var]
            running(config, store=store) as pipeline,
        ):
            assert pipeline.wait_until_caught_up(60)
            for number, name in enumerate(TABLES):
                other.execute(*spoil(name, Random(number)), EXTRA[name])
            found = repaired(store, config, list(TABLES))
            assert pipeline.wait_until_caught_up(60)
        too_many = {"texts": 2, "pairs": 2}
        assert {name: counts(each) for name, each in found.items()} == {
            name: ("ranges", 2, too_many.get(name, 1), 3) for name in TABLES
        }
        for name in TABLES:
            query = f"select * from {name} order by id"
            assert other.query(query) == database.query(query)


def test_a_destination_restored_from_a_backup_gets_what_it_lacks_at_the_next_start(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    database, path = newest_database, tmp_path / "test.duckdb"
    database.execute(
        "create table people (id int primary key, note text)",
        "insert into people select i, 'n' || i from generate_series(1, 100) i",
        "create publication etl_pub for all tables",
    )
    config = make_config(database)
    file = tmp_path / "etl.yaml"
    source = {"dsn": database.dsn, "publication": "etl_pub"}
    there = {"type": "duckdb", "path": str(path)}
    whole = {"pipeline": config.pipeline, "source": source, "destination": there}
    file.write_text(yaml.safe_dump(whole), "utf-8")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    backup = shutil.copy(path, tmp_path / "backup.duckdb")
    with running(config) as pipeline:
        database.execute("delete from people where id < 5", "insert into people values (101, 'n')")
        assert pipeline.wait_until_caught_up(60)
    shutil.copy(backup, path)
    with pytest.raises(DestinationRestored), running(config):
        pass
    found = CliRunner().invoke(cli, ["repair", "--all", "--yes", "-c", str(file)])
    assert (found.exit_code, "Done. Start the pipeline." in found.output) == (0, True)
    destination = Counting(path)
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    assert not hasattr(destination, "copied")
    assert_table_in_step(database, config, "people")
