"""A pipeline's positions as Meltano state, and what a person's changes to them do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.memory import Notice, load_notices
from etl_dagster.integrations.meltano.mirrored import state_location
from etl_dagster.integrations.meltano.positions import mirrored_positions
from etl_dagster.integrations.meltano.storage import StateStorage
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database
from tests.support.pipelines import running

DEADLINE_S = 60.0
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
    """Somebody else with access to the states."""
    location = state_location(config)
    assert location is not None
    with closing(StateStorage(location, writer="somebody")) as storage:
        yield storage


@contextmanager
def mirrored(config: PipelineConfig) -> Iterator[Pipeline]:
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
        mirrored_positions(config, store, pipeline.status),
    ):
        yield pipeline


def until(what: str, look: Callable[[], Any]) -> Any:
    """The mirror tells nobody when it has written."""
    deadline = time.monotonic() + DEADLINE_S
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
    # What was wanted is not lost: the history has it.
    assert [v.writer for v in person.history(ORDERS, limit=2)][1] == "somebody"


def test_an_editor_left_open_while_the_pipeline_went_on_is_no_request(
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
    # The mirror's own is gone; what somebody wrote there is theirs.
    assert person.get(ORDERS) is None
    assert person.get(CUSTOMERS) is not None
    assert copies_of(shop, "orders") == copies_of(shop, "customers") == 1


def test_a_table_that_leaves_the_publication_and_returns_was_not_cleared(
    config: PipelineConfig, person: StateStorage, shop: Database
) -> None:
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
        shop.execute("ALTER PUBLICATION etl_pub DROP TABLE customers")
        until("its state to go", lambda: person.get(CUSTOMERS) is None)
        shop.execute("ALTER PUBLICATION etl_pub ADD TABLE customers")
        ready(person, CUSTOMERS)
    assert not notices(config)


def test_states_that_went_with_their_table_were_not_cleared(
    config: PipelineConfig, person: StateStorage, shop: Database
) -> None:
    """Somebody restored an empty database, or dropped what looked unneeded."""
    with mirrored(config):
        ready(person, ORDERS, CUSTOMERS)
    shop.execute(
        "DROP TABLE etl.meltano_state, etl.meltano_state_history, etl.meltano_state_locks,"
        " etl.meltano_state_migrations"
    )
    with mirrored(config), closing(StateStorage(person.location)) as later:
        ready(later, ORDERS, CUSTOMERS)
    assert copies_of(shop, "orders") == 1
    assert not notices(config)
