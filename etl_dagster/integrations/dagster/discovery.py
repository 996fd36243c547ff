"""Which tables a pipeline publishes, when definitions are loaded."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.source.catalog import fetch_publication_tables
from etl_dagster.source.connection import connect

_log = logging.getLogger(__name__)

#: Definitions are loaded by every process of Dagster; none may hang for long.
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True)
class Discovery:
    """The tables, and why they may not be the latest."""

    tables: tuple[TableSchema, ...]
    problem: EtlError | None = None


def discover_tables(config: PipelineConfig) -> Discovery:
    """Ask the source; where it can't answer, take what it said last.

    A code location that fails to load can't tick its sensor, and a run that has begun could not
    go on. So what the source said is kept in ``$DAGSTER_HOME/etl_dagster/``, and without that, or
    before there is any, the pipeline has no assets yet: the sensor then says what is wrong.

    Raises:
        ConfigError: the configuration itself can't be used.
    """
    quick = config.source.model_copy(update={"connect_timeout_s": _CONNECT_TIMEOUT_S})
    try:
        with connect(quick, application_name="etl_dagster definitions") as connection:
            tables = tuple(fetch_publication_tables(connection, config.source.publication))
    except ConfigError:
        raise
    except EtlError as error:
        _log.warning(
            "pipeline %s: %s. What to do: %s", config.pipeline, error.reason, error.solution
        )
        return Discovery(_load_cache(config), error)
    _keep_cache(config, tables)
    return Discovery(tables)


def _cache_path(config: PipelineConfig) -> Path | None:
    home = os.environ.get("DAGSTER_HOME")
    return Path(home) / "etl_dagster" / f"{config.pipeline}.tables.json" if home else None


def _keep_cache(config: PipelineConfig, tables: Sequence[TableSchema]) -> None:
    path = _cache_path(config)
    if path is None:
        return
    payload = [
        asdict(table) | {"snapshot_id": None, "publication": config.source.publication}
        for table in tables
    ]
    text = json.dumps(payload, indent=1)
    # Without it there is only less to fall back on.
    with contextlib.suppress(OSError):
        if path.exists() and path.read_text("utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(text, "utf-8")
        fresh.replace(path)


def _load_cache(config: PipelineConfig) -> tuple[TableSchema, ...]:
    path = _cache_path(config)
    if path is None:
        return ()
    known = {field.name for field in fields(ColumnSchema)}
    try:
        return tuple(
            TableSchema(
                id=table["id"],
                schema_name=table["schema_name"],
                table_name=table["table_name"],
                columns=tuple(
                    ColumnSchema(**{key: column[key] for key in column.keys() & known})
                    for column in table["columns"]
                ),
                snapshot_id=LSN_ZERO,
                replica_identity=table["replica_identity"],
            )
            for table in json.loads(path.read_text("utf-8"))
            if table["publication"] == config.source.publication
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
