"""What commands answer about names, about a pipeline that runs, and about several queries."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import PipelineInUse
from tests.support.database import Database
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]


def command(folder: Path, *arguments: str, **options: object) -> Result:
    with contextlib.chdir(folder):
        return CliRunner().invoke(cli, arguments, **options)  # type: ignore[arg-type]


def configure(database: Database, folder: Path) -> None:
    values = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": str(folder / "test.duckdb")},
    }
    (folder / "etl.yaml").write_text(json.dumps(values))


def test_names_that_differ_only_in_case_are_predicted_and_stop_only_their_table(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table orders (id int primary key)",
        'create table "Orders" (id int primary key)',
        'create table pairs (id int primary key, "Id" int)',
        "create table later (id int primary key)",
        "create table items (id int primary key)",
        "insert into items values (1)",
        "create publication etl_pub for all tables",
    )
    configure(newest_database, tmp_path)

    report = json.loads(command(tmp_path, "doctor", "--json").stdout)

    case = "are one name to DuckDB, which doesn't distinguish upper case from lower case"
    found = [check["message"] for check in report if check["name"] == "names"]
    assert found == [
        f"public.Orders and public.orders {case}",
        f'the columns "id" and "Id" of public.pairs {case}',
    ]
    config = make_config(newest_database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        newest_database.execute(
            'alter table later add "ID" int; insert into later values (1, 2)',
            "insert into items values (2)",
        )
        assert pipeline.wait_until_caught_up(60)
        errors = {n: t.error for n, t in pipeline.status().tables.items() if t.error}
    assert len(errors) == 3
    assert {"public.pairs", "public.later"} < errors.keys()
    assert all(case in str(error) for error in errors.values())
    assert rows(config, "select id from public.items order by 1") == [(1,), (2,)]


def test_answers_about_a_running_pipeline_name_its_process(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table orders (id int primary key)", "create publication etl_pub for table orders"
    )
    configure(newest_database, tmp_path)
    assert "`etl-dagster run` starts it." in command(tmp_path, "doctor").stdout
    config = make_config(newest_database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)

        process = rf"\(PID {os.getpid()} on host .+, since 2"
        with pytest.raises(PipelineInUse, match=process), running(config):
            pass
        refused = command(tmp_path, "reset", "--all", "--yes")
        said = command(tmp_path, "doctor").stdout

    assert f"(PID {os.getpid()} on host" in str(refused.output)
    assert f"It runs already (PID {os.getpid()} on host" in said
    assert "starts it" not in said


def test_an_unreachable_source_is_reported_as_one_error(
    newest_database: Database, tmp_path: Path
) -> None:
    configure(newest_database, tmp_path)
    away = newest_database.dsn.replace(newest_database.name, "nowhere")
    text = (tmp_path / "etl.yaml").read_text().replace(newest_database.dsn, away)
    (tmp_path / "etl.yaml").write_text(text)

    result = command(tmp_path, "doctor")

    assert result.exit_code == 1
    assert "1 error: the pipeline can't start." in result.stdout
    assert "state_store" not in result.stdout
    assert "in the source, which can't be reached: not checked" in result.stdout


def test_color_is_left_out_on_request(tmp_path: Path, newest_database: Database) -> None:
    configure(newest_database, tmp_path)

    assert "\x1b[" in command(tmp_path, "doctor", color=True).stdout
    assert "\x1b[" not in command(tmp_path, "doctor", color=True, env={"NO_COLOR": "1"}).stdout


def test_without_a_terminal_a_reset_names_the_option_it_needs(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table orders (id int primary key)",
        "insert into orders values (1)",
        "create publication etl_pub for table orders",
    )
    configure(newest_database, tmp_path)
    with running(make_config(newest_database)) as pipeline:
        assert pipeline.wait_until_caught_up(60)

    for what in ("public.orders", "--all"):
        result = command(tmp_path, "reset", what)
        assert result.exit_code == 2
        assert "Use --yes" in result.stderr
    # The same file answers one query, after settings if there are some.
    several = command(tmp_path, "query", "select 1; select 2")
    assert several.exit_code != 0
    assert "several queries" in several.output
    one = command(tmp_path, "query", "--csv", "set threads = 1; select id from public.orders;")
    assert one.stdout.split() == ["id", "1"]
