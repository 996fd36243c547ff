"""A pipeline's positions as Meltano state, and what a user's changes to them do."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from etl_dagster.assembly import build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.integrations.dagster.sensor.supervisor import Replicator, config_payload
from etl_dagster.integrations.meltano.positions.comparison import compare_bookmarks
from etl_dagster.integrations.meltano.positions.memory import NOTE_KEY, Notice, load_notices
from etl_dagster.integrations.meltano.positions.mirror import PositionMirror, mirrored_positions
from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates, state_location
from etl_dagster.integrations.meltano.positions.tables import state_key
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.integrations.meltano.states.uri import locate
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.stores.memory import MemoryStore, MemoryStoreConfig
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.pipelines import running
from tests.support.waiting import PATIENCE_S

ORDERS, CUSTOMERS = "dev:shop-to-duckdb:public.orders", "dev:shop-to-duckdb:public.customers"


@pytest.fixture
def shop(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
        "CREATE TABLE customers (id int PRIMARY KEY, name text)",
        "INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 500) i",
        "INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bo')",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, customers",
    )
    return newest_database


@pytest.fixture
def config(shop: Database, make_config: Callable[..., PipelineConfig]) -> PipelineConfig:
    return make_config(shop, pipeline="shop", meltano={"interval_s": 0.1})


@pytest.fixture
def person(config: PipelineConfig) -> Iterator[StateStorage]:
    """Another program with access to the states."""
    location = state_location(config)
    assert location is not None
    with closing(StateStorage(location, writer="person")) as storage:
        yield storage


@contextmanager
def mirrored(config: PipelineConfig, timing: Timing = TIMING) -> Iterator[Pipeline]:
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, timing=timing) as pipeline,
        mirrored_positions(config, store, pipeline.status),
    ):
        yield pipeline


def until(what: str, look: Callable[[], Any]) -> Any:
    """The mirror gives no signal when it has written."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"waiting for {what}"
        time.sleep(0.05)
    return found


def bookmark(storage: StateStorage, state_id: str) -> dict[str, Any]:
    state = storage.get(state_id)
    if state is None:
        return {}
    (found,) = state.merged()["singer_state"]["bookmarks"].values()
    return dict(found)


def ready(storage: StateStorage, *state_ids: str) -> None:
    def is_ready() -> bool:
        return all(bookmark(storage, name).get("phase") == "ready" for name in state_ids)

    until(f"{', '.join(state_ids)} in step", is_ready)


def notices(config: PipelineConfig) -> list[Notice]:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        return load_notices(store)[0]


def problem(config: PipelineConfig) -> str | None:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        return load_notices(store)[1]


def copies_of(shop: Database, table: str) -> int:
    """How often the table was copied, by the history of its states."""
    ((count,),) = shop.query(
        "select count(*) from etl.table_states where state->>'type' = 'finished_copy'"
        " and table_id = to_regclass(%s)::oid",
        [table],
    )
    return int(count)


def test_every_table_has_a_singer_shaped_state(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute("INSERT INTO orders VALUES (1000, 'x')")
        until("the change", lambda: bookmark(person, ORDERS).get("commit_time"))

    state = person.get(ORDERS)
    assert state is not None
    assert state.partial is None
    found = state.completed_object()
    assert found["etl_dagster"] == {
        "state_id": ORDERS,
        "pipeline": "shop",
        "table": "public.orders",
    }
    (name,) = found["singer_state"]["bookmarks"]
    mark = found["singer_state"]["bookmarks"][name]
    assert name == "public-orders"
    assert mark["replication_method"] == "LOG_BASED"
    assert mark["phase"] == "ready"
    assert mark["rows_copied"] == 500
    assert Lsn.parse(mark["handover_lsn"]) < Lsn.parse(mark["commit_lsn"])
    assert mark["commit_time"]
    ((confirmed,),) = shop.query("select confirmed_flush_lsn from pg_replication_slots")
    assert Lsn.parse(mark["commit_lsn"]).offset < mark["lsn"] <= Lsn.parse(confirmed).offset
    # Steps are in the history, the moves between them are not.
    phases = [
        (version.partial or version.completed or "").partition('"phase": "')[2].partition('"')[0]
        for version in person.history(ORDERS)
    ]
    assert phases[0] == "ready"
    assert len(phases) <= 8


def test_a_cleared_state_asks_for_one_copy(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        first = bookmark(person, ORDERS)["handover_lsn"]
        person.delete(ORDERS)
        until(
            "the new copy",
            lambda: bookmark(person, ORDERS).get("handover_lsn", first) != first,
        )
        ready(person, ORDERS)
    assert copies_of(shop, "orders") == 2
    assert copies_of(shop, "customers") == 1
    (notice,) = notices(config)
    assert (notice.kind, notice.table) == ("copy", "public.orders")
    state = person.get(ORDERS)
    assert state is not None
    assert "copied again" in state.merged()["etl_dagster"]["note"]


def test_a_state_cleared_while_nothing_runs_is_copied_at_the_next_start(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
    person.delete(ORDERS)
    with mirrored(config) as pipeline:
        pipeline.wait_until_caught_up()
        assert copies_of(shop, "orders") == 2
    with mirrored(config) as pipeline:
        pipeline.wait_until_caught_up()
        ready(person, ORDERS)
    assert copies_of(shop, "orders") == 2
    assert copies_of(shop, "customers") == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lsn: {"lsn": lsn - 1_000_000, "phase": "ready"}, "can't go back"),
        (lambda lsn: {"lsn": lsn + 1_000_000_000, "phase": "ready"}, "would be lost"),
        (lambda lsn: {"lsn": "0/1", "phase": "ready"}, "not a position"),
        (lambda lsn: {"phase": "ready"}, "is missing"),
    ],
)
def test_a_position_that_cannot_be_honoured_is_refused_and_written_back(
    shop: Database,
    config: PipelineConfig,
    person: StateStorage,
    change: Callable[[int], dict[str, Any]],
    why: str,
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        before = bookmark(person, ORDERS)
        edited = {"singer_state": {"bookmarks": {"public-orders": change(before["lsn"])}}}
        person.set(ORDERS, completed=edited)
        until("the refusal", lambda: "handover_lsn" in bookmark(person, ORDERS))
    state = person.get(ORDERS)
    assert state is not None
    after = state.merged()
    assert after["singer_state"]["bookmarks"]["public-orders"]["lsn"] >= before["lsn"]
    assert why in after["etl_dagster"]["note"]
    (notice,) = notices(config)
    assert notice.kind == "refused"
    assert copies_of(shop, "orders") == 1
    # What was requested is not lost: the history has it.
    assert [v.writer for v in person.history(ORDERS, limit=2)][1] == "person"


def test_an_editor_left_open_while_the_pipeline_continued_is_not_a_request(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        opened = person.get(ORDERS)
        assert opened is not None
        shop.execute("INSERT INTO orders VALUES (1000, 'x')")
        old = bookmark(person, ORDERS)["lsn"]
        until("a later position", lambda: bookmark(person, ORDERS)["lsn"] > old)
        edited = json.loads(opened.completed or "")
        edited["singer_state"]["bookmarks"]["public-orders"]["rows_copied"] = 7
        person.set(ORDERS, completed=edited)
        until("what is true", lambda: bookmark(person, ORDERS)["rows_copied"] == 500)
    assert [notice.kind for notice in notices(config)] == ["edited"]


def test_a_state_that_was_moved_is_not_cleared(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        state = person.get(ORDERS)
        assert state is not None
        person.set("dev:elsewhere", completed=state.completed)
        person.delete(ORDERS)
        ready(person, ORDERS)
    assert copies_of(shop, "orders") == 1
    assert [notice.kind for notice in notices(config)] == ["moved"]
    assert person.get("dev:elsewhere") is not None


def test_a_state_copied_over_another_tables_is_refused(
    config: PipelineConfig, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        state = person.get(ORDERS)
        assert state is not None
        person.set(CUSTOMERS, completed=state.completed)
        until("customers' own", lambda: bookmark(person, CUSTOMERS).get("rows_copied") == 2)
    (notice,) = notices(config)
    assert "no bookmark of the stream public-customers" in notice.text


def test_a_new_environment_takes_the_states_along(
    config: PipelineConfig, person: StateStorage, shop: Database
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
    person.set(CUSTOMERS, completed={"singer_state": {"mine": 1}})
    renamed = config.model_copy(update={"environment": "prod"})
    with mirrored(renamed):
        ready(person, *(name.replace("dev:", "prod:") for name in (ORDERS, CUSTOMERS)))
    # The mirror's own is gone; what a person wrote there stays.
    assert person.get(ORDERS) is None
    assert person.get(CUSTOMERS) is not None
    assert copies_of(shop, "orders") == copies_of(shop, "customers") == 1


def test_a_table_that_leaves_the_publication_and_returns_was_not_cleared(
    config: PipelineConfig, person: StateStorage, shop: Database
) -> None:
    with mirrored(config, Timing(membership_s=0.2)):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute("ALTER PUBLICATION etl_pub DROP TABLE customers")
        until("its state to go", lambda: person.get(CUSTOMERS) is None)
        shop.execute("ALTER PUBLICATION etl_pub ADD TABLE customers")
        ready(person, CUSTOMERS)
    assert not notices(config)


def test_states_that_went_with_their_table_were_not_cleared(
    config: PipelineConfig, person: StateStorage, shop: Database
) -> None:
    """An empty or older database was restored, or what looked unneeded was dropped."""
    drop = (
        "DROP TABLE etl.meltano_state, etl.meltano_state_history, etl.meltano_state_locks,"
        " etl.meltano_state_migrations"
    )
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute(drop)
        with closing(StateStorage(person.location)) as later:
            # Makes the tables again, and reads them until all states are there.
            ready(later, ORDERS, CUSTOMERS)
            # The database is restored to a time before one of the states was there.
            shop.execute(
                "WITH versions AS (DELETE FROM etl.meltano_state_history"
                f" WHERE state_id = '{ORDERS}')"
                f" DELETE FROM etl.meltano_state WHERE state_id = '{ORDERS}'"
            )
            ready(later, ORDERS)
    shop.execute(drop)
    with mirrored(config), closing(StateStorage(person.location)) as later:
        ready(later, ORDERS, CUSTOMERS)
    assert copies_of(shop, "orders") == 1
    assert not notices(config)


# -- a process that dies, a place that is away ----------------------------------------------------


def test_tables_dropped_under_a_running_pipeline_are_created_again(
    config: PipelineConfig, shop: Database, person: StateStorage
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute(
            "DROP TABLE etl.meltano_state, etl.meltano_state_locks, etl.meltano_state_history,"
            " etl.meltano_state_migrations"
        )
        until(
            "the table of states",
            lambda: shop.query("select to_regclass('etl.meltano_state') is not null")[0][0],
        )
        ready(person, ORDERS, CUSTOMERS)
    assert copies_of(shop, "orders") == 1


def test_states_may_be_in_a_source_that_publishes_all_its_tables(
    config: PipelineConfig, shop: Database, person: StateStorage
) -> None:
    shop.execute("DROP PUBLICATION etl_pub; CREATE PUBLICATION etl_pub FOR ALL TABLES")
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute("INSERT INTO orders VALUES (1000, 'new')")
        until("its commit", lambda: bookmark(person, ORDERS).get("commit_time"))
    assert problem(config) is None


@pytest.mark.parametrize("was_done", [False, True])
def test_a_request_that_a_crash_interrupted_is_done_once(
    shop: Database, config: PipelineConfig, person: StateStorage, was_done: bool
) -> None:
    """The process died after it had remembered the request; perhaps it had asked for the copy."""
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
    person.delete(ORDERS)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        ((table_id,),) = shop.query("select 'orders'::regclass::oid")
        state = store.get_table_replication_state(table_id)
        assert isinstance(state, Ready)
        remembered = dict(store.get_note(NOTE_KEY) or {})
        entry = remembered["entries"][ORDERS]
        entry["requested_at"] = state_key(store, table_id, state)
        store.put_note(NOTE_KEY, remembered)
        if was_done:
            store.request_copy(table_id)
            with running(config, store=store) as pipeline:
                pipeline.wait_until_caught_up()
            assert copies_of(shop, "orders") == 2
    with mirrored(config) as pipeline:
        pipeline.wait_until_caught_up()
        ready(person, ORDERS)
    assert copies_of(shop, "orders") == 2


def test_a_state_that_could_not_be_written_was_not_cleared(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    """The first states of a pipeline that has run for some time; the table refuses one."""
    off = config.model_copy(
        update={"meltano": config.meltano.model_copy(update={"enabled": False})}
    )
    with mirrored(off) as pipeline:
        pipeline.wait_until_caught_up()
    person.migrate()
    shop.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not now'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON etl.meltano_state FOR EACH ROW"
        f" WHEN (new.state_id = '{ORDERS}') EXECUTE FUNCTION refuse()",
    )
    with mirrored(config):
        until("a refusal", lambda: problem(config))
        shop.execute("DROP TRIGGER refuse ON etl.meltano_state")
        ready(person, ORDERS, CUSTOMERS)
    assert copies_of(shop, "orders") == copies_of(shop, "customers") == 1
    assert not notices(config)


def test_a_process_whose_pipeline_was_taken_over_stops_writing(
    config: PipelineConfig, person: StateStorage
) -> None:
    states = MirroredStates.of(config)
    assert states is not None
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
        closing(states),
    ):
        pipeline.wait_until_caught_up()
        before = pipeline.status()
        mirror = PositionMirror(config, store, lambda: before, states)
        found = mirror._find(must_read=True)
        assert found is not None
        mirror._write(found)
        ready(person, ORDERS, CUSTOMERS)
        person.delete(ORDERS)
        later = dataclasses.replace(before, epoch=before.epoch - 1)
        mirror._status = lambda: later
        assert mirror._find(must_read=True, is_last=True) is None
        assert person.get(ORDERS) is None
    assert not notices(config)


def test_an_unreachable_state_backend_costs_a_warning_and_is_brought_up_to_date_later(
    newest_server: EmbeddedPostgres,
    shop: Database,
    config: PipelineConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"{shop.name}_states"
    uri = (
        f"postgres://postgres:{newest_server.password}@{newest_server.host}:{newest_server.port}"
        f"/{name}/public"
    )
    section = config.meltano.model_copy(update={"state_backend": SecretStr(uri)})
    away = config.model_copy(update={"meltano": section})
    with caplog.at_level("WARNING"), mirrored(away) as pipeline:
        pipeline.wait_until_caught_up()
        until("a warning", lambda: "can't be mirrored" in caplog.text)
        assert ".." not in caplog.text
        assert name in (problem(config) or "")
        shop.execute(f"CREATE DATABASE {name}")
        try:
            with closing(StateStorage(locate(uri))) as person:
                ready(person, ORDERS, CUSTOMERS)
            until("the end of the problem", lambda: problem(config) is None)
        finally:
            pipeline.shutdown()
            shop.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert newest_server.password not in caplog.text


def test_a_uri_that_cannot_be_read_does_not_keep_the_pipeline_from_running(
    config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    secret = make_secret()
    section = config.meltano.model_copy(
        update={"state_backend": SecretStr(f"mysql://me:{secret}@host/db")}
    )
    with mirrored(config.model_copy(update={"meltano": section})) as pipeline:
        pipeline.wait_until_caught_up()
    assert "not mirrored" in caplog.text
    assert secret not in caplog.text


def test_a_pipeline_with_a_memory_store_mirrors_to_the_configured_uri(
    newest_server: EmbeddedPostgres, shop: Database, config: PipelineConfig
) -> None:
    uri = (
        f"postgres://postgres:{newest_server.password}@{newest_server.host}:{newest_server.port}"
        f"/{shop.name}/public"
    )
    forgetful = config.model_copy(
        update={
            "state_store": MemoryStoreConfig(type="memory"),
            "meltano": config.meltano.model_copy(update={"state_backend": SecretStr(uri)}),
        }
    )
    store = MemoryStore()
    with (
        running(forgetful, store=store) as pipeline,
        mirrored_positions(forgetful, store, pipeline.status),
        closing(StateStorage(locate(uri))) as person,
    ):
        ready(person, ORDERS, CUSTOMERS)


def test_nothing_is_mirrored_where_it_is_turned_off(shop: Database, config: PipelineConfig) -> None:
    section = config.meltano.model_copy(update={"enabled": False})
    with mirrored(config.model_copy(update={"meltano": section})) as pipeline:
        pipeline.wait_until_caught_up()
    assert shop.query("select to_regclass('etl.meltano_state')") == [(None,)]


def test_the_replicator_that_dagster_supervises_mirrors_too(
    config: PipelineConfig, person: StateStorage
) -> None:
    """Its copies are runs of Dagster, so here the tables stay where they are."""
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        store.load_table_schemas()  # makes the schema, so that `person` may look
    child = Replicator(config_payload(config), 60.0)
    try:
        until("the states", lambda: bookmark(person, ORDERS).get("phase") == "init")
        state = person.get(ORDERS)
        assert state is not None
        assert state.completed is None
    finally:
        child.stop(10.0)
    assert child.failure() is None


# -- while no pipeline runs ----------------------------------------------------------------------


def invoke(config: PipelineConfig, tmp_path: Path, *arguments: str) -> str:
    path = tmp_path / "etl.yaml"
    path.write_text(config_payload(config).replace("$", "$$"))  # JSON is YAML
    result = CliRunner().invoke(cli, [*arguments, "-c", str(path)])
    assert result.exit_code == 0, result.output
    return result.output


def test_reset_shows_what_the_next_start_would_do_and_can_do_it_earlier(
    shop: Database, config: PipelineConfig, person: StateStorage, tmp_path: Path
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
    assert "No table is to be copied" in invoke(
        config, tmp_path, "reset", "--from-meltano", "--dry-run"
    )
    person.delete(ORDERS)
    person.set(
        CUSTOMERS, completed={"singer_state": {"bookmarks": {"public-customers": {"lsn": 5}}}}
    )

    shown = invoke(config, tmp_path, "reset", "--from-meltano", "--dry-run")
    assert f"{ORDERS}: its state was cleared; public.orders is copied again" in shown
    assert f"{CUSTOMERS}: refused, the table can't go back to 0/5" in shown
    assert "Dry run: nothing changed" in shown
    assert person.get(ORDERS) is None

    assert "Done" in invoke(config, tmp_path, "reset", "--from-meltano", "--yes")
    with mirrored(config) as pipeline:
        pipeline.wait_until_caught_up()
        ready(person, ORDERS, CUSTOMERS)
        assert "No table is to be copied" in invoke(config, tmp_path, "reset", "--from-meltano")
    assert copies_of(shop, "orders") == 2
    assert copies_of(shop, "customers") == 1
    status = invoke(config, tmp_path, "status")
    assert f"Meltano state {CUSTOMERS}: an edit was refused" in status


def test_bookmarks_and_slot_tell_the_same_story_until_the_slot_is_gone(
    shop: Database, config: PipelineConfig, person: StateStorage
) -> None:
    tables = {"public.orders": ORDERS}
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        compared = compare_bookmarks(config, tables)
        assert compared is not None
        assert compared["public.orders"].passed
        assert compared["public.orders"].bookmark_lsn is not None
    shop.drop_slots()
    compared = compare_bookmarks(config, tables)
    assert compared is not None
    assert compared["public.orders"].is_severe
