"""Repairs of a pipeline that no process runs: its next start does them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import is_wanted

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.source.control import SourceControl

_NEXT = "compares every table with the source and replaces the rows that differ."


def repair_at_next_start(
    config: PipelineConfig, store: CoordinatingStore, *, yes: bool, as_json: bool
) -> None:
    """Have the next start repair every table; of several destinations, those of one.

    Raises:
        PipelineInUse: a process runs the other destinations, or has begun to run the pipeline.
        SlotInUse: a copy under way still reads its slot.
    """
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.resetting import reset_pipeline

    if config.membership is None:
        click.echo(
            "No process runs the pipeline. The slot will be dropped; the next start creates "
            f"another, {_NEXT}",
            err=as_json,
        )
    else:
        # The process that runs the other destinations uses the slots of this one, too.
        _require_idle(config.whole)
        click.echo(
            f"No process runs the pipeline. The next start of {config.membership.name} {_NEXT} "
            "The shared slot and the other destinations stay as they are.",
            err=as_json,
        )
    if not is_wanted(dry_run=False, yes=yes):
        return
    ask_for_copies(store, list(store.get_table_replication_states()))
    with contextlib.closing(_control(config)) as control:
        reset_pipeline(config, store, control, by_repair=True)
    _done([config.pipeline], as_json=as_json)


def repair_several_at_next_start(whole: PipelineConfig, *, yes: bool, as_json: bool) -> None:
    """Have the next start repair every table of every destination.

    Raises:
        PipelineInUse: a process runs the pipeline, or has begun to.
        SlotInUse: a copy under way still reads its slot.
    """
    from etl_dagster.assembly import opened_store
    from etl_dagster.runtime.copying.pausing import ask_for_copies
    from etl_dagster.runtime.resetting import reset_several

    _require_idle(whole)
    members = whole.members()
    with contextlib.ExitStack() as opened:
        stores = {name: opened.enter_context(opened_store(each)) for name, each in members.items()}
        click.echo(
            f"No process runs the pipeline. The slots will be dropped; the next start creates "
            f"another, and for each of {', '.join(members)} {_NEXT}",
            err=as_json,
        )
        if not is_wanted(dry_run=False, yes=yes):
            return
        for store in stores.values():
            ask_for_copies(store, list(store.get_table_replication_states()))
        with contextlib.closing(_control(whole)) as control:
            reset_several(whole, stores, control, by_repair=True)
    _done([each.pipeline for each in members.values()], as_json=as_json)


def _done(pipelines: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"tables": [], "repaired_at_next_start": list(pipelines)}))
    else:
        click.echo("Done. Start the pipeline.")


def _require_idle(whole: PipelineConfig) -> None:
    from etl_dagster.assembly import opened_store
    from etl_dagster.runtime.resetting import ALL
    from etl_dagster.runtime.runner import in_use

    with opened_store(whole) as store:
        if not store.is_leased(ALL.lease):
            return
        used = in_use(store, whole.pipeline, "a process", key=ALL.runner)
    used.solution = (
        "A destination that it runs is repaired while it runs: choose it with --destination. For "
        "one that fails, stop the process first: Ctrl-C where it runs, or turn the sensors off in "
        "Dagster. Then repair, and start it again."
    )
    raise used


def _control(config: PipelineConfig) -> SourceControl:
    from etl_dagster.source.control import SourceControl

    return SourceControl(config.source, application_name=f"etl_dagster repair {config.pipeline}")
