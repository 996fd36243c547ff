"""`etl-dagster status`: the state of a pipeline, whichever process runs it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl_dagster.cli.listing import ROWS, few, print_table, say_more
from etl_dagster.cli.options import config_option, json_option, load_whole

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.source.control import SourceControl
    from etl_dagster.source.slots import CreationWait, Slot

#: How many notices are shown about changes that people made to the tables' Meltano states.
_NOTICES_SHOWN = 3


@click.command(short_help="Show states, progress and lag.")
@config_option
@click.option("--watch", "is_watched", is_flag=True, help="Stay, and show it live until Ctrl-C.")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with plots of the last hours into this file.",
)
@click.option("--all", "everything", is_flag=True, help="All tables, also where they are many.")
@json_option
def status(
    config_path: Path, is_watched: bool, page: Path | None, everything: bool, as_json: bool
) -> None:
    """Show table states, progress and lag of a pipeline, wherever it runs.

    Shards and destinations in trouble come first.

    \b
    etl-dagster status --watch
    etl-dagster status --html status.html
    """
    if [is_watched, page is not None, as_json].count(True) > 1:
        raise click.UsageError("choose one of --watch, --html and --json")
    whole = load_whole(config_path)
    from etl_dagster.cli.existing import that_ran

    if is_watched:
        from etl_dagster.cli.watching import watch

        watch(that_ran(whole))
        return
    if page is not None:
        _write_page(whole, page)
        return
    if not (whole.destinations or whole.shards):
        report = _collect(whole)
        if as_json:
            click.echo(json.dumps(report, indent=2))
        else:
            _show(report, whole, everything=everything)
        return
    parts = that_ran(whole)
    reports = {name: _collect(part) for name, part in parts.items()}
    if as_json:
        several = "shards" if whole.shards else "destinations"
        click.echo(json.dumps({"pipeline": whole.pipeline, several: reports}, indent=2))
        return
    from etl_dagster.cli.status_of_all import by_need, lines

    reports = by_need(reports)
    click.echo("\n".join([whole.pipeline, *lines(reports)]))
    for name, report in reports.items():
        click.echo("\n" + click.style(name, bold=True))
        _show(report, parts[name], everything=everything)


def _write_page(whole: PipelineConfig, path: Path) -> None:
    from etl_dagster.cli.existing import existing_store, that_ran
    from etl_dagster.cli.files import write_text
    from etl_dagster.cli.status_page import status_page
    from etl_dagster.runtime.showing.history import HISTORY, read_history

    reports = []
    for config in that_ran(whole).values():
        with existing_store(config) as store:
            reports.append((collect(config, store), read_history(store.get_status(HISTORY))))
    write_text(path, status_page(reports), option="--html")
    click.echo(f"Wrote {path}.")


def _collect(config: PipelineConfig) -> dict[str, Any]:
    from etl_dagster.cli.existing import existing_store

    with existing_store(config) as store:
        return collect(config, store)


def collect(config: PipelineConfig, store: CoordinatingStore) -> dict[str, Any]:
    """What the store knows, what the pipeline last published, and the slot as it is now."""
    from etl_dagster.integrations.meltano.positions.memory import load_notices
    from etl_dagster.model.states import DataSync, Errored, state_name, state_to_json
    from etl_dagster.model.stores import ApplyWorker
    from etl_dagster.runtime.copying.pausing import paused_tables
    from etl_dagster.runtime.many import many
    from etl_dagster.runtime.showing.stopped import what_to_do
    from etl_dagster.source.control import SourceControl

    published = store.get_status("apply") or {}
    by_id = {table["table_id"]: table for table in published.get("tables", {}).values()}
    versions = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    names = {schema.id: schema.name for schema in versions}
    tables = []
    states = store.get_table_replication_states()
    paused = paused_tables(store)
    plans = many(store).get_copy_plans([t for t, s in states.items() if isinstance(s, DataSync)])
    for table_id, state in states.items():
        known = by_id.get(table_id, {})
        name = names.get(table_id) or known.get("name") or f"table {table_id}"
        table: dict[str, Any] = {
            "table": name,
            "table_id": table_id,
            "state": state_name(state),
            "state_id": config.state_id(name),
            "detail": state_to_json(state),
            "paused_since": paused.get(table_id),
            "row_count": known.get("row_count"),
            "row_count_estimated": known.get("row_count_estimated", False),
            "last_commit_lsn": known.get("last_commit_lsn"),
            "last_commit_time": known.get("last_commit_time"),
            "odd_values": known.get("odd_values") or {},
            "rows_quarantined": known.get("rows_quarantined", 0),
            "partitions_kept": known.get("partitions_kept", 0),
            "last_partition_kept": known.get("last_partition_kept"),
        }
        if isinstance(state, Errored):
            table["wal_kept_bytes"] = known.get("wal_kept_bytes") if state.is_kept else None
            table["what_to_do"] = what_to_do(state, name, config)
        plan = plans.get(table_id)
        if plan is not None:
            table["copy_chunks_done"] = len(plan.finished)
            table["copy_chunks_total"] = len(plan.chunks)
            table["copy_rows_done"] = sum(c.row_count for c in plan.finished.values())
        tables.append(table)
    progress = store.get_replication_progress(ApplyWorker())
    notices, problem = load_notices(store)
    control = SourceControl(config.source, application_name="etl_dagster status")
    with contextlib.closing(control):
        of_source = {**_slots(config, control), **_coming_copies(config, store, control)}
    return {
        "pipeline": config.pipeline,
        "destination": config.destination.type,
        "is_running": store.is_leased("apply"),
        "durable_lsn": None if progress is None else str(progress),
        **of_source,
        "tables": sorted(tables, key=lambda table: str(table["table"])),
        "published": published or None,
        "meltano": {"problem": problem, "notices": [vars(notice) for notice in notices]},
    }


def _coming_copies(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl
) -> dict[str, Any]:
    """Tables that the next start copies again; None where the source can't be asked."""
    from etl_dagster.errors import EtlError
    from etl_dagster.runtime.tables.coming_copies import announced_copies

    try:
        coming = announced_copies(config, store, control)
    except EtlError:
        return {"copied_again": None}  # the slot's line, or the doctor, says what is wrong
    return {"copied_again": [{"table": each.table, **each.to_json()} for each in coming]}


def _slots(config: PipelineConfig, control: SourceControl) -> dict[str, Any]:
    """The apply worker's slot, and those that tables have while they are copied.

    A table that stopped in its copy keeps its slot, and the source keeps WAL for it.
    """
    from etl_dagster.errors import EtlError
    from etl_dagster.source.retained_wal import RetainedWal
    from etl_dagster.source.slots import (
        apply_slot_names,
        fetch_apply_slot,
        fetch_copying_slots,
        fetch_creation_waits,
    )

    name = apply_slot_names(config)[-1]
    try:
        slot = control.ask("looking at the slot", fetch_apply_slot, config)
        others = control.ask("looking at the slots", fetch_copying_slots, config.pipeline)
        waits = {
            each.name: control.ask("looking at open transactions", fetch_creation_waits, each)
            for each in (slot, *others)
            if each is not None
        }
    except EtlError as error:
        return {"slot": {"name": name, "error": error.reason}, "table_slots": []}
    if slot is None:
        own: dict[str, Any] = {"name": name, "error": "it does not exist on the source"}
    else:
        own = _slot(slot, waits)
        wal = RetainedWal.of(slot, config.source)
        own["warned_above_bytes"] = wal.warned_above_bytes
        own["warning"] = wal.reason if wal.is_too_much else None
        own["solution"] = wal.solution if wal.is_too_much else None
    return {"slot": own, "table_slots": [_slot(other, waits) for other in others]}


def _slot(slot: Slot, waits: Mapping[str, Sequence[CreationWait]]) -> dict[str, Any]:
    """A slot as it is, with what its creation waits for."""
    return {
        "name": slot.name,
        "active": slot.active,
        "wal_status": slot.wal_status,
        "confirmed_lsn": str(slot.confirmed_flush_lsn),
        "retained_bytes": slot.retained_bytes,
        "waits_for": [
            {"transaction": str(each), "solution": f"{each.where}: {each.solution}"}
            for each in waits.get(slot.name, ())
        ],
    }


def _show(report: dict[str, Any], config: PipelineConfig, *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from etl_dagster.config.commands import command
    from etl_dagster.runtime.showing.stopped import where_it_stopped
    from etl_dagster.words import human_bytes, row_count

    running = "running" if report["is_running"] else "not running"
    published, slot = report["published"] or {}, report["slot"]
    click.echo(f"{report['pipeline']} to {report['destination']}: {running}")
    click.echo(f"  durable up to  {report['durable_lsn'] or '-'}")
    if "error" in slot:
        click.echo(f"  slot           {slot['name']}: {slot['error']}")
    else:
        kept = human_bytes(slot["retained_bytes"])
        click.echo(f"  slot           {slot['name']}: {slot['wal_status']}, keeps {kept} of WAL")
        if slot["warning"]:
            click.echo(f"  warning        {slot['warning']}")
            click.echo(f"  what to do     {slot['solution']}")
    for other in few(report["table_slots"], full="--json"):
        kept = human_bytes(other["retained_bytes"])
        click.echo(f"  table's slot   {other['name']}: {other['wal_status']}, keeps {kept} of WAL")
    for each in (slot, *report["table_slots"]):
        for waited in each.get("waits_for", ()):
            click.echo(f"  waits          {each['name']} for {waited['transaction']}")
            click.echo(f"  what to do     {waited['solution']}")
    if report["is_running"] and published:
        lag = human_bytes(published.get("lag_bytes", 0))
        seconds = published.get("lag_seconds", 0.0)
        rate = published.get("rows_per_second", 0.0)
        click.echo(f"  lag            {lag}, {seconds:.1f} s, at {rate:,.0f} rows/s")
        if count := published.get("transactions_in_progress"):
            size = human_bytes(published.get("spooled_bytes", 0))
            click.echo(f"  in progress    {count} large transactions, {size} on disk")
        latency = published.get("latency_seconds")
        if latency is not None:
            click.echo(f"  latency        {latency:.1f} s from commit to durable, by heartbeat")
    if published.get("note"):
        click.echo(f"  note           {published['note']}")
    if published.get("error"):
        click.echo(f"  last error     {published['error']}")
        if published.get("solution"):
            click.echo(f"  what to do     {published['solution']}")
    click.echo()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("table", "state", "rows", "last change"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    shown = report["tables"] if everything else _first(report["tables"])
    for row in shown:
        state = row["state"]
        if "copy_chunks_total" in row:
            state += f" {row['copy_chunks_done']}/{row['copy_chunks_total']} chunks"
        if row["paused_since"]:
            state += ", paused"
        rows = row_count(row["row_count"], is_estimated=row["row_count_estimated"])
        last = (row["last_commit_time"] or "").partition(".")[0].partition("+")[0]
        table.add_row(Text(row["table"]), Text(state), rows, last.replace("T", " "))
    print_table(table)
    say_more(len(report["tables"]) - len(shown), full="--all")
    for coming in few(report["copied_again"] or [], full="--json"):
        click.echo(
            f"\n{coming['table']}: {coming['reason']}. With the next start, {coming['consequence']}"
        )
    for notice in report["meltano"]["notices"][-_NOTICES_SHOWN:]:
        click.echo(f"\n{notice['at']}  Meltano state {notice['state_id']}: {notice['text']}")
    if report["meltano"]["problem"]:
        click.echo(f"\nPositions are not mirrored now: {report['meltano']['problem']}")
    tables = report["tables"]
    for row in few([row for row in tables if row["partitions_kept"]], full="--json"):
        click.echo(
            f"\n{row['table']}: the rows of {row['partitions_kept']} removed or truncated "
            f"partitions are kept, the latest {row['last_partition_kept']} "
            "(partitions_removed: keep)"
        )
    odd = [row for row in tables if row["odd_values"] or row["rows_quarantined"]]
    for row in few(odd, full="--json"):
        if row["odd_values"]:
            counts = ", ".join(f"{name} {count:,}" for name, count in row["odd_values"].items())
            click.echo(
                f"\n{row['table']}: values that the column's type can't hold: {counts} "
                f"(`{command(config, 'odd', row['table'])}`)"
            )
        if row["rows_quarantined"]:
            click.echo(
                f"{row['table']}: {row['rows_quarantined']:,} rows with such a value are in "
                "quarantine, besides the rows that are counted above"
            )
    for row in few([row for row in tables if row["state"] == "errored"], full="--json"):
        detail = row["detail"]
        where = where_it_stopped(detail.get("since"), detail.get("lsn"), row.get("wal_kept_bytes"))
        click.echo(f"\n{row['table']}: {detail['reason']}" + (f" ({where})" if where else ""))
        click.echo(f"What to do: {row['what_to_do']}")


def _first(tables: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """All tables that are not ready, as far as there is room, then those that are."""
    if len(tables) <= ROWS:
        return tables
    by_need = sorted(tables, key=lambda row: (row["state"] == "ready", row["table"]))
    return sorted(by_need[:ROWS], key=lambda row: str(row["table"]))
