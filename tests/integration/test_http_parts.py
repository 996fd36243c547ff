"""Values with parts, from the source to a server, in the format that the server knows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.http import HttpDestination, load_json_schema, row_json_schema
from etl_dagster.model.states import Errored
from tests.support.database import PUBLICATION, Database
from tests.support.pipelines import running
from tests.support.receiver import Receiver

MakeConfig = Callable[..., PipelineConfig]
Json = dict[str, Any]

_SOURCE = (
    "create extension if not exists hstore",
    "create type pair as (n bigint, t text)",
    "create type mood as enum ('sad', 'happy')",
    "create table t (id int, tags text[], days daterange, p pair, m mood, h hstore, key_tags int[],"
    " primary key (id, key_tags))",
    "alter table t alter tags set storage external",
    "insert into t values"
    " (1, array['a', null], '[2024-01-01,2024-02-01)', row(1, 'x')::pair, 'sad', 'a=>1,b=>NULL',"
    " '{1}'), (2, '{}', 'empty', row(null, '')::pair, null, '', '{2}')",
    f"create publication {PUBLICATION} for table t",
)


def test_values_with_parts_arrive_as_their_columns_are_described(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    """By the copy and by the stream, a large value that an update doesn't send included."""
    newest_database.execute(*_SOURCE)
    config = make_config(newest_database)
    with Receiver(tmp_path) as receiver:
        destination = HttpDestination(receiver.url, pipeline="test")
        with running(config, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            newest_database.execute(
                "update t set tags = array_fill('tag'::text, array[5000]) where id = 2",
                "update t set days = '(,2024-01-05]', p.t = 'y', key_tags = '{7}' where id = 2",
                "alter table t add c int[][] default '{{1,2}}'",
                "insert into t (id, m, key_tags) values (3, 'happy', '{}')",
            )
            assert pipeline.wait_until_caught_up(60)
        rows = {row["id"]: row for row in receiver.rows("public.t") or []}
        bodies = _validated(receiver, 2)

    assert rows[1] == {
        "id": 1,
        "tags": ["a", None],
        "days": _range("2024-01-01", "2024-02-01", lower_inc=True),
        "p": {"n": "1", "t": "x"},
        "m": "sad",
        "h": {"a": "1", "b": None},
        "key_tags": "{1}",  # rows are found by it
        "c": None,  # a default of its own is the receiver's to fill in
    }
    assert rows[2] == {
        "id": 2,
        "tags": ["tag"] * 5000,
        "days": _range(None, "2024-01-06"),
        "p": {"n": None, "t": "y"},
        "m": None,
        "h": {},
        "key_tags": "{7}",
        "c": None,
    }
    assert rows[3]["m"] == "happy"
    assert rows[3]["c"] == [[1, 2]]
    filled = [event["filled"] for event in _events(bodies) if event["type"] == "relation"]
    assert {"c": [[1, 2]]} in filled


def test_a_receiver_of_format_1_gets_text_and_a_table_that_was_copied_otherwise_stops(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    newest_database.execute(*_SOURCE)
    with Receiver(tmp_path) as receiver:
        settings = {"type": "http", "url": receiver.url}
        newest = make_config(newest_database, destination=settings)
        oldest = make_config(newest_database, destination=settings | {"format": 1})
        with closing(build_store(newest)) as store:  # type: ignore[type-var]
            with running(newest, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                [(table_id, _)] = store.get_table_replication_states().items()
            newest_database.execute("insert into t (id, key_tags) values (3, '{}')")
            with running(oldest, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                state = store.get_table_replication_states()[table_id]
                assert isinstance(state, Errored)
                assert "format 1 has no lists" in state.reason
                assert "tags, days, p, h were copied" in state.reason
                assert "destination.format to 2" in state.solution
            receiver.forget()
            store.request_copy(table_id)
            with running(oldest, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                newest_database.execute("update t set tags = '{b}' where id = 1")
                assert pipeline.wait_until_caught_up(60)
        rows = {row["id"]: row for row in receiver.rows("public.t") or []}
        _validated(receiver, 1)

    assert sorted(rows) == [1, 2, 3]
    assert rows[1] == {
        "id": 1,
        "tags": "{b}",
        "days": "[2024-01-01,2024-02-01)",
        "p": "(1,x)",
        "m": "sad",
        "h": '"a"=>"1", "b"=>NULL',
        "key_tags": "{1}",
    }


def _validated(receiver: Receiver, format: Any) -> list[Json]:
    """All bodies that came, each as the schema of this format says."""
    bodies = [request["body"] for request in receiver.requests()]
    valid = jsonschema.Draft202012Validator(load_json_schema(format))
    for body in bodies:
        valid.validate(body)
        if format == 2:
            rows = jsonschema.Draft202012Validator(row_json_schema(body["table"]))
            for row in [*body.get("rows", ()), *(e.get("row", {}) for e in body.get("events", ()))]:
                rows.validate(row)
    assert {body["kind"] for body in bodies} == {"drop-for-copy", "rows", "events"}
    return bodies


def _events(bodies: list[Json]) -> list[Json]:
    return [event for body in bodies for event in body.get("events", ())]


def _range(lower: str | None, upper: str | None, *, lower_inc: bool = False) -> Json:
    return {
        "lower": lower,
        "upper": upper,
        "lower_inc": lower_inc,
        "upper_inc": False,
        "empty": False,
    }
