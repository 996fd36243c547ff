"""Values that a type can't hold are counted where the destination only passes them on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import PUBLICATION, Database
from tests.support.pipelines import running
from tests.support.receiver import Receiver
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]


@pytest.mark.parametrize("tables", [1, 6])
def test_odd_values_of_the_copy_and_the_stream_are_in_the_status_even_after_a_restart(
    newest_database: Database, make_config: MakeConfig, tmp_path: Path, tables: int
) -> None:
    """Of a table that is copied by itself, and of one in a group."""
    others = [f"t{number}" for number in range(1, tables)]
    newest_database.execute(
        "create table a (id int primary key, amount numeric(5, 2), at timestamp)",
        "insert into a values (1, 'NaN', 'infinity'), (2, 'NaN', '294276-12-31'), (3, 1, null)",
        *(f"create table {name} (id int primary key)" for name in others),
        f"create publication {PUBLICATION} for table {', '.join(['a', *others])}",
    )
    with Receiver(tmp_path) as receiver:
        section = {"type": "http", "url": receiver.url}
        config = make_config(newest_database, destination=section)
        with closing(build_store(config)) as store:  # type: ignore[type-var]
            with running(config, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                _wait_for(pipeline, {"amount": 2, "at": 1})
                newest_database.execute(
                    "insert into a values (4, 'NaN', null)",
                    "delete from a where id = 4",
                )
                _wait_for(pipeline, {"amount": 3, "at": 1})
            with running(config, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                _wait_for(pipeline, {"amount": 3, "at": 1})
                newest_database.execute("update a set amount = 'NaN' where id = 3")
                _wait_for(pipeline, {"amount": 4, "at": 1})
            # Another copy begins its count again.
            newest_database.execute("update a set amount = 0 where id < 3")
            [table_id] = [s.id for s in store.get_table_schemas() if s.name == "public.a"][:1]
            store.request_copy(table_id)
            with running(config, store=store) as pipeline:
                assert pipeline.wait_until_caught_up(60)
                _wait_for(pipeline, {"amount": 1, "at": 1})
        file = tmp_path / "etl.yaml"
        source = {"dsn": newest_database.dsn, "publication": PUBLICATION}
        file.write_text(
            yaml.safe_dump({"pipeline": "test", "source": source, "destination": section})
        )

        shown = CliRunner().invoke(cli, ["odd", "--config", str(file)]).output
        listed = json.loads(
            CliRunner().invoke(cli, ["odd", "--json", "--config", str(file)]).output
        )
    assert "public.a: amount 1, at 1" in shown
    assert f"They were sent to {receiver.url}" in shown
    assert listed["counts"] == {"public.a": {"amount": 1, "at": 1}}
    assert listed["values"] is None


def _wait_for(pipeline: Pipeline, expected: Mapping[str, int]) -> None:
    wait_until(lambda: pipeline.status().tables["public.a"].odd_values == expected)
