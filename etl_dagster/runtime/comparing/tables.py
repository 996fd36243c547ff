"""Compares tables of a pipeline one after the other: for a command, a check or a job."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.comparing.comparison import Comparison, TableComparison
from etl_dagster.runtime.comparing.eligible import Eligible, find_eligible, require_reader
from etl_dagster.runtime.comparing.sides import Side
from etl_dagster.source.control import SourceControl

OnRows: TypeAlias = Callable[[Side, int], None]


@contextlib.contextmanager
def _unobserved(table: Eligible) -> Iterator[OnRows]:
    yield lambda side, count: None


def compare_tables(
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    wanted: Mapping[str, TableId],
    *,
    stop: threading.Event | None = None,
    progress: Callable[[Eligible], AbstractContextManager[OnRows]] = _unobserved,
    most_keys: int = 0,
) -> Iterator[tuple[Eligible, Comparison | None]]:
    """Compare the tables while another thread or process streams them.

    Args:
        destination: not the one that the pipeline writes, but another object of its kind, which
            need not be started. The caller shuts it down.
        wanted: tables by name, as `find_table_ids` gives them.
        progress: a context for each table, which gives what is called with the rows read.
        most_keys: as of `TableComparison`.

    Returns:
        Each table in its turn, with None where it can't be compared (`Eligible.why_not`).

    Raises:
        NotOffered: the destination's rows can't be read back.
        Stopped: told to stop.
        EtlError: source, store or destination can't be read, or nothing streams.
    """
    reader = require_reader(config, destination)
    control = SourceControl(config.source, application_name=f"etl_dagster repair {config.pipeline}")
    with contextlib.closing(control):
        for each in find_eligible(config, store, control, wanted):
            if each.table is None:
                yield each, None
                continue
            with progress(each) as on_rows:
                found = TableComparison(
                    config,
                    store,
                    control,
                    reader,
                    each.table,
                    stop=stop or threading.Event(),
                    on_rows=on_rows,
                    most_keys=most_keys,
                ).run()
            yield each, found
