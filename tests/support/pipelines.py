"""Pipelines that run inside of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import query
from etl_dagster.destinations.duckdb.reading import read_connection
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.source.control import SourceControl
from tests.support.database import Database
from tests.support.waiting import PATIENCE_S


@contextmanager
def running(
    config: PipelineConfig,
    *,
    store: CoordinatingStore | None = None,
    destination: Destination | None = None,
    copies: Literal["own", "elsewhere"] = "own",
    timing: Timing = TIMING,
    make_control: Callable[..., SourceControl] = SourceControl,
) -> Iterator[Pipeline]:
    """A pipeline that is shut down at the end; what it failed with is raised then."""
    with closing(build_store(config)) as own_store:  # type: ignore[type-var]
        pipeline = Pipeline(
            config,
            store or own_store,
            destination or build_destination(config),
            copies=copies,
            timing=timing,
            make_control=make_control,
        )
        pipeline.start()
        try:
            yield pipeline
        finally:
            pipeline.shutdown()
            assert pipeline.wait(PATIENCE_S), "it did not stop"


def rows(config: PipelineConfig, statement: str) -> list[tuple[Any, ...]]:
    """The answer of the DuckDB file."""
    assert config.destination.type == "duckdb"
    table = query(config.destination.path, statement)
    return [tuple(row.values()) for row in table.to_pylist()]


@contextmanager
def reading(config: PipelineConfig) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """`rows` for several statements, which opens the file once; nothing is written meanwhile.

    For values that are cast to text.
    """
    assert config.destination.type == "duckdb"
    with read_connection(config.destination.path) as file:
        yield lambda statement: file.execute(statement).fetchall()


def assert_table_in_step(database: Database, config: PipelineConfig, table: str) -> None:
    """Columns and rows of a table in schema public are those of the source, in any order.

    For types that both sides print alike.
    """
    columns = database.query(
        "select attname from pg_attribute where attrelid = to_regclass(quote_ident(%s))"
        " and attnum > 0 and not attisdropped order by 1",
        [table],
    )
    values = ", ".join(f'cast("{name}" as varchar)' for (name,) in columns)
    with reading(config) as ask:
        there = ask(
            "select column_name from duckdb_columns() where schema_name = 'public'"
            f" and table_name = '{table}' order by 1",
        )
        assert there == columns
        found = ask(f'select {values} from public."{table}"')
    expected = database.query(f'select {values} from "{table}"')
    assert sorted(found, key=repr) == sorted(expected, key=repr)
