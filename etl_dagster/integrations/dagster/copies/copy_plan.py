"""Requests copies of tables, and decides how many steps make them together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from dagster import OpExecutionContext

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import InvalidState
from etl_dagster.integrations.dagster.copies.shared_copies import RunWatch
from etl_dagster.integrations.dagster.copies.step_copy import StepCopy
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.table_name import TableName

_POLL_S = 0.2


@dataclass(frozen=True)
class _Size:
    """The size of a table's copy."""

    name: str
    table_id: TableId
    chunks: int
    rows_estimated: int
    #: Why one step has to copy it alone; None if several may.
    alone: str | None


def plan_copies(
    context: OpExecutionContext,
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    watch: RunWatch,
    names: Sequence[str],
    workers: int,
) -> int:
    """Request copies, and return how many of the following steps should make them.

    A repeated call, as after a kill, requests no second copy.

    Args:
        destination: not started.
        workers: the largest number of steps.

    Raises:
        InvalidState: a table is not published.
    """
    from etl_dagster.runtime.copying.sharing import want_shared

    outcome = Outcome(lambda: [_measure(config, name) for name in names])
    while not outcome.wait(_POLL_S):
        watch.check()
    sizes = outcome.result()
    is_single = not destination.capabilities.shared_copies
    if is_single:
        context.log.info(
            f"one step copies everything: {destination.name} can't be written by several "
            "processes at a time"
        )
    for size in sizes:
        context.log.info(
            f"{size.name}: about {size.rows_estimated:,} rows in {size.chunks} "
            + ("chunk" if size.chunks == 1 else "chunks")
            + (f"; one step copies it alone: {size.alone}" if size.alone and not is_single else "")
        )
        if not is_single and size.alone is None:
            # Before the copy is requested: a replicator that starts it at once has to share it.
            want_shared(store, size.table_id)
        StepCopy(context, config, store, destination, watch, size.name).prepare(size.table_id)
    pieces = sum(1 if size.alone else size.chunks for size in sizes)
    count = 1 if is_single else max(min(workers, pieces), 1)
    context.log.info(f"{count} steps copy" if count > 1 else "1 step copies")
    return count


def _measure(config: PipelineConfig, name: str) -> _Size:
    from etl_dagster.runtime.tables.representation import chosen_tables
    from etl_dagster.source.catalog import fetch_leaves, fetch_published_tables, fetch_table_id
    from etl_dagster.source.control import SourceControl
    from etl_dagster.source.copy import plan_chunks

    publication = config.source.publication
    parsed = TableName.parse(name)
    control = SourceControl(config.source, application_name="etl_dagster copy plan")
    with contextlib.closing(control):
        doing = f"measuring {name}"
        table_id = control.ask(doing, fetch_table_id, parsed.schema_name, parsed.table_name)
        found = (
            []
            if table_id is None
            else control.ask(doing, fetch_published_tables, publication, [table_id])
        )
        if table_id is None or not found:
            raise InvalidState(
                f"{name} is not in publication {publication!r}",
                solution="Add it to the publication, or leave it out of the job.",
            )
        [table] = chosen_tables(found, config)
        leaves = control.ask(doing, fetch_leaves, table_id)
    chunks = plan_chunks(leaves, config.copy_tables.chunk_rows)
    alone = None
    if not table.schema.key_columns:
        alone = "it has no key, so all of it is read under one snapshot"
    elif not table.can_resume_copy:
        alone = "its updates aren't published, or it keeps a history: it is read under one snapshot"
    rows = sum(chunk.estimated_rows for chunk in chunks)
    return _Size(table.schema.name, table_id, len(chunks), rows, alone)
