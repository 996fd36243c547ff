"""Which tables a pipeline publishes, when definitions are loaded."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError, SourceUnreachable
from etl_dagster.integrations.dagster.tables.kept_tables import (
    KnownTables,
    tables_from_text,
    tables_to_text,
)
from etl_dagster.integrations.dagster.tables.storage import source_database
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.source.comments import TableComments, fetch_comments
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

#: Every process of Dagster loads definitions. None may hang for long: neither while it connects,
#: nor in a query of the catalog, nor on a network that loses the answers.
_CONNECT_TIMEOUT_S, _STATEMENT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 5, 10.0, 20.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Discovery:
    """The tables, and why they may not be the latest."""

    tables: tuple[TableSchema, ...]
    problem: EtlError | None = None
    comments: Mapping[TableId, TableComments] = field(default_factory=dict)
    #: The database in which they were found; None for the one that the configuration names.
    database: str | None = None


def discover_tables(
    config: PipelineConfig,
    *,
    ask_source: Callable[[PipelineConfig], KnownTables] | None = None,
    answer_timeout_s: float = _ANSWER_TIMEOUT_S,
) -> Discovery:
    """Ask the source; if it can't answer, take its last answer.

    A code location that fails to load can't tick its sensor, and a run that has begun could not
    continue. So the last answer is kept in ``$DAGSTER_HOME/etl_dagster/``. Without that, as in a
    new pod, a state store on another server has the tables that were copied; without either, the
    pipeline has no assets yet. The sensor then reports what is wrong.

    Args:
        ask_source: asks the source.

    Raises:
        ConfigError: the configuration itself can't be used.
    """
    ask = ask_source or _ask_source
    try:
        tables, comments = _answer_in_time(lambda: ask(config), "the source", answer_timeout_s)
    except ConfigError:
        raise
    except EtlError as error:
        _log.warning(
            "pipeline %s: %s. What to do: %s", config.pipeline, error.reason, error.solution
        )
        (tables, comments), database = _load_cache(config)
        return Discovery(tables or _ask_store(config), error, comments, database)
    _keep_cache(config, tables, comments)
    return Discovery(tables, None, comments)


def _ask_source(config: PipelineConfig) -> KnownTables:
    from etl_dagster.source.catalog import fetch_publication_tables
    from etl_dagster.source.connection import connect

    quick = config.source.model_copy(update={"connect_timeout_s": _CONNECT_TIMEOUT_S})
    with connect(
        quick,
        application_name="etl_dagster definitions",
        statement_timeout_s=_STATEMENT_TIMEOUT_S,
    ) as connection:
        tables = tuple(fetch_publication_tables(connection, config.source.publication))
        return tables, fetch_comments(connection, [table.id for table in tables])


def _ask_store(config: PipelineConfig) -> tuple[TableSchema, ...]:
    """The tables that were copied, where the state store is not in the source."""
    if getattr(config.state_store, "dsn", None) is None:
        return ()

    from etl_dagster.assembly import opened_store
    from etl_dagster.model.stores import KnowsPipeline

    def ask() -> tuple[TableSchema, ...]:
        with opened_store(config) as store:
            if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
                return ()
            store.load_table_schemas()
            versions = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
            states = store.get_table_replication_states()
        newest = {schema.id: schema for schema in versions if schema.id in states}
        return tuple({schema.name: schema for schema in newest.values()}.values())

    try:
        return _answer_in_time(ask, "the state store", _ANSWER_TIMEOUT_S)
    except EtlError as error:
        _log.warning("pipeline %s: %s", config.pipeline, error.reason)
        return ()


def _answer_in_time(ask: Callable[[], _Answer], who: str, timeout_s: float) -> _Answer:
    """The answer.

    Raises:
        SourceUnreachable: there is none in time.
        EtlError: what `ask` raises.
    """
    answers: queue.SimpleQueue[tuple[_Answer | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    # A process that is done doesn't wait for it, or not for long.
    Background(run, name="definitions").start()
    try:
        answer, error = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise SourceUnreachable(f"{who} did not answer in {timeout_s:.0f} s") from None
    if error is not None:
        raise error
    return cast(_Answer, answer)


def _cache_path(config: PipelineConfig) -> Path | None:
    home = os.environ.get("DAGSTER_HOME")
    return Path(home) / "etl_dagster" / f"{config.pipeline}.tables.json" if home else None


def _keep_cache(
    config: PipelineConfig,
    tables: Sequence[TableSchema],
    comments: Mapping[TableId, TableComments],
) -> None:
    path = _cache_path(config)
    if path is None:
        return
    database = source_database(config.source)
    text = tables_to_text(config.source.publication, database, tables, comments)
    # The cache is only a fallback.
    with contextlib.suppress(OSError):
        if path.exists() and path.read_text("utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(text, "utf-8")
        fresh.replace(path)


def _load_cache(config: PipelineConfig) -> tuple[KnownTables, str | None]:
    """The source's last answer, and the name of its database at that time."""
    path = _cache_path(config)
    if path is None:
        return ((), {}), None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ((), {}), None
    return tables_from_text(text, config.source.publication)
