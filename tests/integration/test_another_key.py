"""Tables that get another key: rows are found by it, and odd values stay those of their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.pipelines import reading, rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]


@dataclass(frozen=True)
class Case:
    """How a table gets another key; an @ stands for its name."""

    #: What comes after its first rows.
    changes: tuple[str, ...]
    #: The key in the end, as the list in its entries.
    key: str
    #: How the table begins; by default `id` is the primary key.
    beginning: str = "alter table @ add primary key (id)"
    #: Whether it is copied again if the event trigger reports each step, and if the pipeline has to
    #: find out. None: only if the step without a key comes in a batch of its own.
    copied: tuple[bool | None, bool] = (False, False)


_CODE = "[code::varchar]"
CASES = {
    "moved": Case(
        ("alter table @ drop constraint @_pkey, add primary key (code)",),
        _CODE,
    ),
    "widened": Case(
        ("alter table @ drop constraint @_pkey, add primary key (code, id)",),
        "[code::varchar, id::varchar]",
    ),
    "renamed": Case(
        (
            "alter table @ drop constraint @_pkey",
            "alter table @ add primary key (code)",
            "alter table @ rename id to old_id",
        ),
        _CODE,
        copied=(None, False),
    ),
    "unannounced": Case(
        (
            "alter table @ drop constraint @_pkey, add primary key (code)",
            "insert into @ values (1, 60, 'NaN', 6.5)",
        ),
        _CODE,
        beginning="alter table @ add primary key (id), replica identity full",
        copied=(False, True),
    ),
    "by_index": Case(
        ("alter table @ replica identity using index @_code_key",),
        _CODE,
    ),
    "by_index_and_back": Case(
        (
            "alter table @ replica identity using index @_code_key",
            "insert into @ values (4, 40, 'NaN', 'NaN')",
            "alter table @ replica identity default",
        ),
        "[id::varchar]",
    ),
    "dropped_with_its_column": Case(
        ("alter table @ drop column id", "alter table @ add primary key (code)"),
        _CODE,
        copied=(None, False),
    ),
    "had_none": Case(
        ("alter table @ add primary key (id)",),
        "[id::varchar]",
        beginning="alter table @ replica identity full",
        copied=(True, True),
    ),
    "has_none": Case(
        ("alter table @ drop constraint @_pkey, replica identity full",),
        "null::varchar[]",
        copied=(True, True),
    ),
    "odd_itself": Case(
        (
            "delete from @ where id = 2",
            "alter table @ drop constraint @_pkey, add primary key (amount)",
        ),
        "[amount::varchar]",
        copied=(True, True),
    ),
    "held_otherwise": Case(
        ("alter table @ drop constraint @_pkey, add primary key (exact)",),
        "[exact::varchar]",
        copied=(True, True),
    ),
}


def _differences(database: Database, config: PipelineConfig) -> list[str]:
    """The rows of each table with their odd values, joined by its key."""
    found = []
    with reading(config) as ask:
        for name, case in CASES.items():
            columns = database.query(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " and not attisdropped order by 1",
                [name],
            )
            theirs = ", ".join(f"{column}::text" for (column,) in columns)
            ours = ", ".join(
                f"coalesce((select text from _etl.odd_values where table_name = '{name}' and"
                f" column_name = '{column}' and key = {case.key}), {column}::varchar)"
                for (column,) in columns
            )
            expected = sorted(database.query(f"select {theirs} from {name}"), key=repr)
            if case.key.startswith("null"):
                continue
            held = sorted(ask(f"select {ours} from public.{name}"), key=repr)
            if held != expected:
                found.append(f"{name}: {held} instead of {expected}")
    return found


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "found"])
def test_odd_values_stay_with_their_rows(
    database: Database, make_config: MakeConfig, reported: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name, case in CASES.items():
        database.execute(
            f"create table {name} (id int not null, code int unique not null,"
            " amount numeric(6,2) not null, exact numeric not null)",
            case.beginning.replace("@", name),
            f"insert into {name} values (1, 10, 'NaN', 1.5), (2, 20, 'NaN', 2.5), (3, 30, 3, 3.5)",
        )
    database.execute("create publication etl_pub for all tables")
    if reported:
        with database.connect() as connection:
            install(connection)
    config = make_config(database, numeric="decimal(10,1)")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for name, case in CASES.items():
            database.execute(
                *(change.replace("@", name) for change in case.changes),
                f"insert into {name} (code, amount, exact) values (50, 5, 5.5)"
                if name.startswith("dropped")
                else f"insert into {name} values (5, 50, 5, 5.5)",
                f"update {name} set amount = 7 where code = 10",
                f"delete from {name} where code = 30",
            )
        assert pipeline.wait_until_caught_up(60)
        states = {name: table.state for name, table in pipeline.status().tables.items()}

    assert set(states.values()) == {"ready"}
    assert not _differences(database, config)
    assert rows(config, "select text from _etl.odd_values where table_name = 'has_none'") == [
        ("NaN",)
    ]
    copied = {
        message.split()[0].removeprefix("public.")
        for message in caplog.messages
        if "is copied again" in message
    }
    expected = {name: case.copied[not reported] for name, case in CASES.items()}
    assert {name for name, is_copied in expected.items() if is_copied} <= copied
    assert not copied & {name for name, is_copied in expected.items() if is_copied is False}
