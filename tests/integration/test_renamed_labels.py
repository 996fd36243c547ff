"""Enum values that are renamed, without the event trigger: rows with the old text are copied."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import Database
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]

_TABLES = ("by_mood", "by_moods", "whole", "held", "by_pair", "other")


def _differences(database: Database, config: PipelineConfig) -> list[object]:
    found = []
    for table in _TABLES:
        theirs = database.query(f"select m::text, n from {table}")
        ours = rows(config, f"select m::varchar, n from public.{table}")
        if sorted(theirs) != sorted(ours):
            found.append((table, theirs, ours))
    return found


def _copied(caplog: pytest.LogCaptureFixture) -> set[str]:
    messages = (message for message in caplog.messages if "is copied again" in message)
    found = {message.split()[0].removeprefix("public.") for message in messages}
    caplog.clear()
    return found


def test_tables_that_have_a_renamed_value_are_copied_again(
    database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    database.execute(
        "create type mood as enum ('happy', 'sad')",
        "create type humor as enum ('dry')",
        "create domain feeling as mood",
        "create type pair as (a int)",
        "create table by_mood (m mood primary key, n int)",
        "create table by_moods (m feeling[] primary key, n int)",
        "create table whole (m mood, n int)",
        "alter table whole replica identity full",
        "create table held (id int primary key, m mood, n int)",
        "create table by_pair (m pair primary key, n int)",
        "create table other (m humor primary key, n int)",
        "insert into by_mood values ('happy', 1), ('sad', 1)",
        "insert into by_moods values ('{happy,sad}', 1), ('{sad}', 1)",
        "insert into whole values ('happy', 1), ('sad', 1)",
        "insert into held values (1, 'happy', 1), (2, 'sad', 1)",
        "insert into by_pair values ('(1)', 1)",
        "insert into other values ('dry', 1)",
        "create publication etl_pub for all tables",
    )
    config = make_config(database, nested="text")
    having = {"by_mood", "by_moods", "whole", "held"}

    def change(n: int) -> None:
        database.execute(
            *(f"update {table} set n = {n}" for table in _TABLES),
            "delete from by_mood where m = 'sad'",
            "delete from whole where m = 'sad'",
        )

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("alter type mood rename value 'happy' to 'glad'")
        change(2)
        assert pipeline.wait_until_caught_up(60)
        assert not _differences(database, config)
        assert _copied(caplog) == having

        database.execute("alter type mood add value 'new' before 'glad'")
        database.execute("insert into by_mood values ('new', 2)")
        change(3)
        assert pipeline.wait_until_caught_up(60)
        assert not _differences(database, config)
        assert _copied(caplog) == set()
    # Of a value that was added since the copy, too, and where two swap their names.
    database.execute(
        "alter type mood rename value 'glad' to 'aside'",
        "alter type mood rename value 'new' to 'glad'",
        "alter type mood rename value 'aside' to 'new'",
        "alter type pair add attribute b text",
    )
    change(4)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert not _differences(database, config)
        assert _copied(caplog) == having | {"by_pair"}
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert _copied(caplog) == set()

    [check] = [check for check in run_checks(config) if check.name == "altered tables"]
    assert check.level == "warning"
    assert "public.by_mood" in check.message
    assert "public.held" not in check.message
