"""Values with parts, from the copy and the stream into DuckDB, and through every change."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

from etl_dagster.assembly import build_store
from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from tests.support.database import PUBLICATION, Database
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]

_ALL = "select id, tags, span, p, m, key_tags from public.t order by id"


def test_nested_values_stay_the_same_through_every_change(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """The copy as text, by an earlier version; then native columns, and a copy with all of them."""
    database = newest_database
    database.execute(
        "create type pair as (a int, b text)",
        "create type mood as enum ('sad', 'happy')",
        "create table t (id int, tags text[], span int4range, p pair, m mood,"
        " key_tags int[], primary key (id, key_tags))",
        "alter table t alter tags set storage external",
        "insert into t select i, array['a', null], '[1,5)', row(i, 'x'::text)::pair, 'sad',"
        " array[i, null] from generate_series(1, 3) i",
        "create table keyless (tags text[], p pair, spans int4multirange)",
        "alter table keyless replica identity full",
        "insert into keyless select array['a', null], row(1, 'x')::pair, '{[1,3),[5,9)}'"
        " from generate_series(1, 3)",
        f"create publication {PUBLICATION} for table t, keyless",
    )
    as_text = make_config(database, nested="text")
    with running(as_text) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert rows(as_text, f"{_ALL} limit 1") == [
            (1, "{a,NULL}", "[1,5)", "(1,x)", "sad", "{1,NULL}")
        ]
    _as_an_earlier_version_kept_it(database, as_text)

    config = make_config(database, tables={"public.t": {"columns": {"j": {"nested": "json"}}}})
    with running(config) as pipeline:
        database.execute(
            "insert into t values (4, '{}', 'empty', row(null, '')::pair, 'happy', '{4}')",
            "alter table t add n numeric(5,1)[] default '{1.5,NULL}'",
            "alter table t add j int[][]",
            "update t set n = '{2}', j = '{{1,2},{3,4}}' where id = 2",
        )
        assert pipeline.wait_until_caught_up(60)
        # What the destination has stays text; what is new is native, or as it was asked for.
        assert rows(config, f"{_ALL} desc limit 1") == [(4, "{}", "empty", '(,"")', "happy", "{4}")]
        assert rows(config, "select id, n::varchar, j from public.t order by id") == [
            (1, "[1.5, NULL]", None),
            (2, "[2.0]", "[[1,2],[3,4]]"),
            (3, "[1.5, NULL]", None),
            (4, "[1.5, NULL]", None),
        ]
    found = [check for check in all_checks(config) if check.name == "types of columns"]
    assert [check.message for check in found if "keyless" not in check.message] == [
        "public.t: tags, span, p, m arrive as they did when the table was copied, not as "
        "`nested`, `numeric`, `odd_values` and the types of this version have it now"
    ]

    with closing(build_store(config)) as store:
        store.reset_for_resync()
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        expected = [_row(number) for number in range(1, 4)]
        expected.append((4, [], _range(None, None, empty=True), _pair(None, ""), "happy", "{4}"))
        assert rows(config, _ALL) == expected
        database.execute(
            "update t set tags = array_fill('tag'::text, array[20000]) where id = 1",
            # A large value that isn't sent stays; so do the others in the row.
            "update t set span = '(,9]' where id = 1",
            "update t set key_tags = '{7}', p.b = 'y' where id = 2",
            "delete from t where id = 3",
            "alter type mood add value 'so so'",
            "insert into t (id, m, key_tags) values (5, 'so so', '{}')",
            # Found by all their values, and equal to others.
            "delete from keyless where ctid in (select min(ctid) from keyless)",
            "update keyless set p.a = null, spans = '{}' where ctid in"
            " (select min(ctid) from keyless)",
        )
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, _ALL) == [
            (1, ["tag"] * 20_000, _range(None, 10, lower_inc=False), *_row(1)[3:]),
            (2, ["a", None], _range(1, 5), _pair(2, "y"), "sad", "{7}"),
            expected[3],
            (5, None, None, None, "so so", "{}"),
        ]
        assert rows(config, "select tags, p, spans from public.keyless order by p.a") == [
            (["a", None], _pair(1, "x"), [_range(1, 3), _range(5, 9)]),
            (["a", None], _pair(None, "x"), []),
        ]
    assert not [check for check in all_checks(config) if check.name == "types of columns"]

    # Nothing in the stream reports it.
    database.execute(
        "alter type pair rename to couple",
        "alter type couple add attribute c int",
        "update t set p.c = 5 where id = 1",
    )
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select id, p from public.t where id < 3 order by id") == [
            (1, {"a": 1, "b": "x", "c": 5}),
            (2, {"a": 2, "b": "y", "c": None}),
        ]


def _row(number: int) -> tuple[Any, ...]:
    tags: list[str | None] = ["a", None]
    return (number, tags, _range(1, 5), _pair(number, "x"), "sad", f"{{{number},NULL}}")


def _pair(a: int | None, b: str | None) -> dict[str, Any]:
    return {"a": a, "b": b}


def _range(
    lower: int | None, upper: int | None, *, lower_inc: bool = True, empty: bool = False
) -> dict[str, Any]:
    return {
        "lower": lower,
        "upper": upper,
        "lower_inc": lower_inc and not empty,
        "upper_inc": False,
        "empty": empty,
    }


def _as_an_earlier_version_kept_it(database: Database, config: PipelineConfig) -> None:
    """Take out of the store and of the file what there was not before columns had a type."""
    added = ("type", "nested", "format")
    database.execute(
        "update etl.table_schemas set columns = (select jsonb_agg(kept - array['type', 'nested',"
        " 'format']) from jsonb_array_elements(columns::jsonb) kept)"
    )
    path: Path = config.destination.path  # type: ignore[attr-defined]
    with duckdb.connect(str(path)) as connection:
        tables = connection.execute("select table_id, columns from _etl.tables").fetchall()
        for table_id, kept in tables:
            columns = [
                {name: value for name, value in column.items() if name not in added}
                for column in json.loads(kept)
            ]
            connection.execute(
                "update _etl.tables set columns = ? where table_id = ?",
                [json.dumps(columns), table_id],
            )
