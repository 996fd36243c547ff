"""Values that a column's type can't hold, from a real source: nothing of them is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

#: What the source holds: by id the amount, the moment, and the bytes of the name.
_SOURCE = """
select id, amount::text, (at at time zone 'UTC')::text, encode(convert_to(name, 'SQL_ASCII'), 'hex')
from accounts order by id
"""
#: The same from the DuckDB file: what the table can't hold is where a join finds it.
_JOINED = """
select t.id, coalesce(amount.text, t.amount::varchar),
    coalesce(replace(moment.text, '+00', ''), (t.at at time zone 'UTC')::varchar),
    lower(hex(coalesce(name.text::blob, encode(t.name))))
from public.accounts t
left join _etl.odd_values amount on amount.table_name = 'accounts'
    and amount.column_name = 'amount' and amount.key = [t.id::varchar]
left join _etl.odd_values moment on moment.table_name = 'accounts'
    and moment.column_name = 'at' and moment.key = [t.id::varchar]
left join _etl.odd_values name on name.table_name = 'accounts'
    and name.column_name = 'name' and name.key = [t.id::varchar]
order by 1
"""
_ENTRIES = """
select key[1], column_name, text, commit_time is null from _etl.odd_values
where table_name = 'accounts' order by all
"""


def _counts(entries: list[tuple[object, ...]]) -> dict[object, int]:
    return dict(Counter(column for _, column in entries))


@pytest.fixture
def ascii_database(server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(server, "SQL_ASCII") as database:
        database.execute(
            "create table accounts (id int primary key, amount numeric(12,2), at timestamptz,"
            " name text)",
            "alter table accounts alter name set storage external",
            "create table counts (amount numeric(6,1))",
            "alter table counts replica identity full",
            "create publication etl_pub for all tables",
        )
        yield database


def _name(byte: str, times: int = 1) -> str:
    return f"repeat(convert_from('\\x6162{byte}'::bytea, 'SQL_ASCII'), {times})"


def test_a_join_gives_back_every_value_of_the_source(
    ascii_database: Database, make_config: MakeConfig
) -> None:
    database = ascii_database
    late = "'294276-12-31 23:59:59.999999+00'"
    database.execute(
        f"insert into accounts values (1, 'NaN', {late}, {_name('ff')}),"
        f" (2, 1.5, now(), {_name('63')}), (3, 'NaN', null, {_name('e9', 900)}),"
        f" (4, 'NaN', {late}, 'd')",
        "insert into counts values ('NaN'), ('NaN'), (1)",
    )
    config = make_config(database)

    def check() -> list[tuple[object, ...]]:
        with database.connect(client_encoding="UTF8") as reader:
            assert rows(config, _JOINED) == reader.execute(_SOURCE).fetchall()
        return [entry[:2] for entry in rows(config, _ENTRIES)]

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        copied = check()
        assert all(is_copied for *_, is_copied in rows(config, _ENTRIES))
        database.execute(
            f"insert into accounts values (5, 'NaN', {late}, {_name('fe')})",
            "update accounts set amount = 7 where id = 1",  # good now
            "update accounts set amount = 'NaN' where id = 2",  # odd now
            "update accounts set at = now() where id = 3",  # its long name isn't sent
            "update accounts set id = 33, amount = 3 where id = 3",  # under another key
            "delete from accounts where id = 4",
            "update counts set amount = 2 where ctid = '(0,1)'",
            "delete from counts where amount = 1",
            "insert into counts values ('NaN'), (4)",
        )
        assert pipeline.wait_until_caught_up(60)
        streamed = check()
        counts = "select text, key from _etl.odd_values where table_name = 'counts'"
        assert rows(config, counts) == [("NaN", None)] * 2
        status = pipeline.status().tables["public.accounts"]
        wait_until(
            lambda: pipeline.status().tables["public.accounts"].odd_values == _counts(streamed)
        )
        database.execute("truncate accounts", "insert into accounts values (6, 'NaN', now(), 'f')")
        assert pipeline.wait_until_caught_up(60)
        truncated = check()

    assert copied == [
        *(("1", name) for name in ("amount", "at", "name")),
        *(("3", name) for name in ("amount", "name")),
        *(("4", name) for name in ("amount", "at")),
    ]
    assert streamed == [
        *(("1", name) for name in ("at", "name")),
        ("2", "amount"),
        ("33", "name"),
        *(("5", name) for name in ("amount", "at", "name")),
    ]
    assert truncated == [("6", "amount")]
    assert status.values_replaced


def test_each_column_has_its_policy_in_copy_and_stream(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    columns = "(id int primary key, amount numeric(12,2), at timestamp)"
    late = "'294276-12-31 23:59:59'"
    database.execute(
        *(f"create table {name} {columns}" for name in ("clamped", "stopped", "refused")),
        "create table texts (at timestamp primary key, n numeric(6,1)[], id int)",
        "create publication etl_pub for all tables",
        f"insert into texts values ({late}, '{{NaN,1}}', 1)",
        f"insert into clamped values (1, 'NaN', {late})",
        "insert into stopped values (1, 1, null)",
        "insert into refused values (1, 'NaN', null)",
    )
    config = make_config(
        database,
        odd_values="fail",
        tables={
            "public.clamped": {
                "columns": {"amount": {"odd_values": "null"}, "at": {"odd_values": "clamp"}}
            },
            "public.texts": {
                "columns": {name: {"odd_values": "text"} for name in ("at", "n", "id", "added")}
            },
        },
    )
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            f"insert into clamped values (2, 'NaN', {late})",
            "insert into stopped values (2, 2, null)",
            f"update texts set n = '{{NaN,2}}' where at = {late}",
            "insert into texts values ('294275-12-31 23:59:59', '{NaN,3}', 2)",
            "alter table texts add added numeric(6,1)",
            "insert into texts values ('2024-01-01 12:00:00', '{4.5}', 3, 'NaN')",
        )
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into stopped values (3, 'NaN', null)")
        wait_until(lambda: pipeline.status().tables["public.stopped"].state == "errored")
        database.execute("insert into clamped values (4, 4, null)")
        assert pipeline.wait_until_caught_up(60)
        tables = pipeline.status().tables

    last = "294247-01-10 04:00:54.775806"
    clamped = 'select id, amount::varchar, "at"::varchar from public.clamped order by 1'
    assert rows(config, clamped) == [
        (1, None, last),
        (2, None, last),
        (4, "4.00", None),
    ]
    assert rows(config, 'select "at", n, id, added from public.texts order by id') == [
        ("294276-12-31 23:59:59", "{NaN,2.0}", 1, None),
        ("294275-12-31 23:59:59", "{NaN,3.0}", 2, None),
        ("2024-01-01 12:00:00", "{4.5}", 3, "NaN"),
    ]
    assert rows(config, "select count(*) from _etl.odd_values where text <> ''") == [(4,)]
    assert rows(config, "select id from public.stopped order by 1") == [(1,), (2,)]
    assert "public.stopped.amount has a value that can't be held as numeric(12,2), at " in (
        tables["public.stopped"].error or ""
    )
    assert tables["public.refused"].state == "errored"
    assert "in its copy" in (tables["public.refused"].error or "")
