r"""Databases that don't keep their text as UTF-8, as source and as state store.

A byte that stands for no character doesn't stop the stream; it arrives as ``\x81``, the same from
copy and stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.source.catalog import fetch_published_tables, fetch_row_values
from etl_dagster.source.connection import connect
from tests.support.database import Database
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]

#: Text that every encoding here has, and bytes that are not a character in it.
ODD = {"SQL_ASCII": b"\xc3\xff", "WIN1252": b"\x81", "LATIN1": b""}


@pytest.fixture(params=list(ODD))
def encoded(request: pytest.FixtureRequest, server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(server, request.param) as database:
        yield database


def test_texts_and_names_arrive_as_utf8(encoded: Database, make_config: MakeConfig) -> None:
    with encoded.connect(client_encoding="UTF8") as writer:
        (encoding,) = writer.execute("select getdatabaseencoding()::text").fetchone() or ()
        odd = ODD[encoding]

        def insert(number: int) -> None:
            writer.execute(
                'insert into "größe" select %s::int, v, v, v, array[v], to_json(v), to_jsonb(v),'
                " case when %s = 2 then 'straße'::gefühl end, 1.5, repeat(v, 500)"
                " from (select 'größe' || convert_from(%s::bytea, %s)) o (v)",
                [number, number, odd, encoding],
            )

        writer.execute("create type gefühl as enum ('straße')")
        writer.execute(
            'create table "größe" (id int primary key, "naïve" text, v varchar(50), c char(50),'
            ' a text[], j json, b jsonb, e "gefühl", n numeric(5,2), doc text)'
        )
        writer.execute('alter table "größe" alter doc set storage external')
        writer.execute("create publication etl_pub for all tables")
        insert(1)
        insert(3)
        config = make_config(encoded)
        assert not [check for check in all_checks(config) if check.level == "error"]
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            insert(2)
            writer.execute('update "größe" set n = 2.5 where id = 3')
            assert pipeline.wait_until_caught_up(60)
            status = pipeline.status().tables["public.größe"]
    with connect(config.source, application_name="test") as connection:
        (published,) = fetch_published_tables(connection, "etl_pub")
        fetched = fetch_row_values(connection, published.schema, ["doc"], [("3",)])

    assert status.state == "ready"
    text = "größe" + odd.decode("ascii", "backslashreplace")
    json = text.replace("\\", "\\\\")
    assert rows(
        config,
        'select id, "naïve", v, trim(c), a, j, b, e, n::varchar, doc from public."größe"'
        " order by id",
    ) == [
        (1, text, text, text, [text], f'"{json}"', f'"{json}"', None, "1.50", text * 500),
        (
            2,
            text,
            text,
            text,
            [text],
            f'"{json}"',
            f'"{json}"',
            "straße",
            "1.50",
            text * 500,
        ),
        (3, text, text, text, [text], f'"{json}"', f'"{json}"', None, "2.50", text * 500),
    ]
    assert fetched.rows == {("3",): (("größe".encode(fetched.codec or "") + odd) * 500,)}
    assert (status.values_replaced > 0) == bool(odd)
