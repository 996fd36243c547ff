"""A pipeline from Postgres to a server that sometimes says no."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.destinations.http.client import HttpClient
from etl_dagster.destinations.http.payload import Body
from etl_dagster.errors import DestinationError
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Errored, ManualRetry
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.pipelines import running
from tests.support.receiver import Receiver
from tests.support.waiting import PATIENCE_S

MakeConfig = Callable[..., PipelineConfig]

SHOP = """
    create table orders (id bigint primary key, note text);
    create table visits (page text, n int);
    create table empty (id int primary key);
    alter table visits replica identity full;
    insert into orders select n, 'note ' || n from generate_series(1, 500) n;
    insert into visits select '/', n from generate_series(1, 500) n;
    create publication etl_pub for table orders, visits, empty;
"""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path) as running:
        yield running


def test_a_table_that_the_server_refuses_does_not_stop_the_others(
    newest_database: Database, make_config: MakeConfig, receiver: Receiver
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(
            config, store=store, destination=HttpDestination(receiver.url, pipeline="test")
        ) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            assert len(receiver.rows("public.orders") or []) == 500
            assert receiver.rows("public.empty") == []
            receiver.misbehave(
                {"answer": "status", "status": 422, "when": "before", "table": "public.orders"}
            )
            # One transaction, so that it is one batch for both.
            newest_database.execute(
                "insert into orders values (501, 'x'); insert into visits values ('/', 501)"
            )
            assert pipeline.wait_until_caught_up(60)

            assert len(receiver.rows("public.orders") or []) == 500
            assert len(receiver.rows("public.visits") or []) == 501
            orders = pipeline.status().tables["public.orders"]
            assert (orders.state, "422" in (orders.error or "")) == ("errored", True)
            assert "Idempotency-Key test:" in (orders.solution or "")
            state = store.get_table_replication_state(orders.table_id)
            assert isinstance(state, Errored)
            assert state.retry == ManualRetry()
        # Once the cause is gone, a copy brings it back.
        store.request_copy(orders.table_id)
        with running(
            config, store=store, destination=HttpDestination(receiver.url, pipeline="test")
        ) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            assert len(receiver.rows("public.orders") or []) == 501
            assert len(receiver.rows("public.visits") or []) == 501


def test_columns_follow_the_source(
    newest_database: Database, make_config: MakeConfig, receiver: Receiver
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    with running(config, destination=HttpDestination(receiver.url)) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        newest_database.execute(
            "alter table orders rename note to remark",
            "alter table orders add total numeric(12, 2)",
            "update orders set total = 1.5, remark = 'changed' where id = 1",
        )
        assert pipeline.wait_until_caught_up(60)

        rows = {row["id"]: row for row in receiver.rows("public.orders") or []}
        assert rows["1"] == {"id": "1", "remark": "changed", "total": "1.50"}
        assert rows["2"] == {"id": "2", "remark": "note 2", "total": None}


def test_a_stop_is_noticed_between_two_bodies_and_nothing_is_lost_or_doubled(
    newest_database: Database,
    make_config: MakeConfig,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    sent: list[str] = []
    has_sent = threading.Event()
    post = HttpClient.post

    def post_and_wait_for_the_stop(client: HttpClient, body: Body, schema: TableSchema) -> None:
        post(client, body, schema)
        if body.path == "events":
            sent.append(body.key)
            has_sent.set()
            assert client._closing.wait(PATIENCE_S)

    def destination() -> HttpDestination:
        return HttpDestination(receiver.url, pipeline="test", max_body_bytes=2000)

    with running(config, destination=destination()) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        monkeypatch.setattr(HttpClient, "post", post_and_wait_for_the_stop)
        newest_database.execute(
            "insert into orders select n, 'later' from generate_series(501, 1000) n"
        )
        assert has_sent.wait(PATIENCE_S)
        pipeline.shutdown()
        assert pipeline.wait(PATIENCE_S)
        assert len(sent) == 1
    monkeypatch.setattr(HttpClient, "post", post)
    assert 500 < len(receiver.rows("public.orders") or []) < 1000

    with running(config, destination=destination()) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        ids = sorted(int(row["id"]) for row in receiver.rows("public.orders") or [])
        assert ids == list(range(1, 1001))


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_of_an_attached_partition_arrive_once(
    newest_database: Database, make_config: MakeConfig, receiver: Receiver, when: str
) -> None:
    """Also where the server fails before or after it has stored some of them."""
    newest_database.execute(
        "create table ev (id int primary key, v text) partition by range (id)",
        "create table ev_0 partition of ev for values from (0) to (100)",
        "insert into ev values (1, 'a')",
        "create publication etl_pub for table ev with (publish_via_partition_root)",
    )
    config = make_config(newest_database)
    with running(config, destination=HttpDestination(receiver.url, pipeline="test")) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        receiver.misbehave({"answer": "status", "status": 503, "when": when})
        newest_database.execute(
            "create table ev_1 (like ev including all)",
            "insert into ev_1 select i, 'b' from generate_series(100, 120) i",
            "alter table ev attach partition ev_1 for values from (100) to (200)",
            "update ev set v = 'c' where id = 101; delete from ev where id = 102",
            "update ev set id = 199 where id = 103",
        )
        assert pipeline.wait_until_caught_up(60)

        found = sorted((int(row["id"]), row["v"]) for row in receiver.rows("public.ev") or [])
        assert found == newest_database.query("select id, v from ev order by id")


def test_a_token_that_is_refused_ends_the_pipeline_with_the_reason(
    newest_database: Database, make_config: MakeConfig, receiver: Receiver
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        pipeline = Pipeline(config, store, HttpDestination(receiver.url, token=make_secret("old")))
        pipeline.start()
        assert pipeline.wait_until_caught_up(60)
        receiver.misbehave({"answer": "status", "status": 401, "when": "before", "path": "events"})

        newest_database.execute("insert into orders values (501, 'x')")

        with pytest.raises(DestinationError, match="401"):
            pipeline.wait(60)
