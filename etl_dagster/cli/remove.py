"""`etl-dagster remove`: remove a pipeline for good."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.confirming import changes_something, is_wanted, require_decided
from etl_dagster.cli.failures import FAILED, show
from etl_dagster.cli.listing import some
from etl_dagster.cli.options import config_option, json_option, load_whole

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.errors import EtlError
    from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates
    from etl_dagster.model.destination import Destination
    from etl_dagster.model.stores import CoordinatingStore
    from etl_dagster.runtime.removing import Removal
    from etl_dagster.source.control import SourceControl

_NEVER_RAN = (
    "It was removed already, or never ran. If it runs elsewhere, compare `pipeline` and "
    "`state_store` with the configuration there."
)


@click.command(short_help="Remove a pipeline for good: slots, state, tables on request.")
@config_option
@click.option("--with-tables", is_flag=True, help="Drop its tables at the destination, too.")
@click.option("--keep-slots", is_flag=True, help="Leave the source alone, because it is gone.")
@changes_something
@json_option
def remove(
    config_path: Path,
    with_tables: bool,
    keep_slots: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove a pipeline: its replication slots, its state, and its mirrored Meltano states.

    A slot that is not read makes the source keep WAL until its disk is full, so a pipeline that
    isn't needed any more has to be removed. Stop it first. The tables at the destination stay as
    they are unless --with-tables is given. Publication and event trigger of the source stay:
    drop them by `drop publication` and `etl-dagster migrate --source --remove` where no other
    pipeline needs them. If it was interrupted, run it again: it finishes.

    \b
    etl-dagster remove --dry-run
    etl-dagster remove --with-tables
    """
    require_decided(as_json=as_json, dry_run=dry_run, yes=yes)
    whole = load_whole(config_path)
    from etl_dagster.cli.existing import that_ran

    with contextlib.ExitStack() as stack:
        control = None if keep_slots else stack.enter_context(_control(whole))
        found = [
            stack.enter_context(_found(config, control, with_tables=with_tables))
            for config in that_ran(whole).values()
        ]
        shared = _shared_slots(whole, control)
        answer = {
            "slots": sorted({*(slot for each in found for slot in each.removal.slots), *shared}),
            "tables": [name for each in found for name in each.table_names] if with_tables else [],
            "states": sorted(state for each in found for state in each.mirrored),
            "pipelines": [each.config.pipeline for each in found],
        }
        if not as_json:
            _show_removal(answer, whole, with_tables=with_tables, keep_slots=keep_slots)
        if dry_run and as_json:
            click.echo(json.dumps({"removed": False, **answer}))
            return
        if not as_json and not is_wanted(dry_run=dry_run, yes=yes):
            return
        tables = [name for each in found for name in each.remove(control)]
        if whole.destinations:
            _remove_shared(whole, control, shared)
    if as_json:
        click.echo(json.dumps({"removed": True, **answer, "tables": tables}))
    else:
        click.echo(f"Removed {', '.join(answer['pipelines'])}.")
    still_known = [each.still_known for each in found if each.still_known is not None]
    for error in still_known:
        show(error.reason, error.solution)
    if still_known:
        click.get_current_context().exit(FAILED)


@dataclass
class _Found:
    """A pipeline, and all that would be removed of it."""

    config: PipelineConfig
    store: CoordinatingStore
    removal: Removal
    destination: Destination | None
    states: MirroredStates | None
    mirrored: Sequence[str] = field(default_factory=list)
    #: Once the pipeline is removed: why the destination still knows it.
    still_known: EtlError | None = None

    @property
    def table_names(self) -> list[str]:
        """The names at the destination; with several destinations, after the destination's name."""
        member = self.config.membership
        prefix = "" if member is None else f"{member.name}: "
        return sorted(f"{prefix}{table.target}" for table in self.removal.tables)

    def remove(self, control: SourceControl | None) -> list[str]:
        """Remove it; returns the names of the dropped tables."""
        from etl_dagster.runtime.removing import remove_pipeline

        _, tables = remove_pipeline(
            self.config,
            self.store,
            control,
            self.destination,
            self.removal,
            before_state=self._forget,
        )
        return tables

    def _forget(self) -> None:
        self._forget_shard()
        self._forget_mirrored()

    def _forget_shard(self) -> None:
        """Have the destination forget a further shard.

        The other shards would not start while the destination knows a shard that the configuration
        does not have.
        """
        from etl_dagster.assembly import build_destination
        from etl_dagster.errors import DestinationError, EtlError
        from etl_dagster.model.destination import RemovesTables, offered
        from etl_dagster.runtime.sharding import how_to_forget

        sharding = self.config.sharding
        if self.destination is not None or sharding is None or sharding.name == sharding.pipeline:
            return
        destination = build_destination(self.config)
        if (removing := offered(destination, RemovesTables)) is None:
            return
        try:
            destination.startup(self.store)
            removing.remove_tables(self.config.pipeline, [])
        except DestinationError as error:
            # The rest is removed, since the destination may be gone for good.
            self.still_known = EtlError(
                f"the shard {sharding.name} is removed, but the destination still knows it: "
                f"{error.reason}",
                solution=f"{error.solution} Then have the destination forget the shard: "
                f"{how_to_forget(self.config.pipeline)} If the destination is gone for good, "
                "no action is needed.",
            )
        finally:
            destination.shutdown()

    def _forget_mirrored(self) -> None:
        if self.states is None:
            return
        for state_id, row in self.states.read_own(self.store).items():
            self.states.delete(state_id, row)


@contextlib.contextmanager
def _found(
    config: PipelineConfig, control: SourceControl | None, *, with_tables: bool
) -> Iterator[_Found]:
    from etl_dagster.assembly import build_destination
    from etl_dagster.cli.existing import existing_store
    from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates
    from etl_dagster.runtime.removing import find_removal, require_removable

    destination = build_destination(config) if with_tables else None
    if destination is not None:
        require_removable(config, destination)
    with existing_store(config, solution=_NEVER_RAN) as store:
        removal = find_removal(config, store, control)
        states = MirroredStates.of(config)
        try:
            mirrored = [] if states is None else list(states.read_own(store))
            yield _Found(config, store, removal, destination, states, mirrored)
        finally:
            if states is not None:
                states.close()


@contextlib.contextmanager
def _control(config: PipelineConfig) -> Iterator[SourceControl]:
    from etl_dagster.errors import SourceError
    from etl_dagster.source.control import SourceControl

    with contextlib.closing(
        SourceControl(config.source, application_name="etl_dagster remove")
    ) as control:
        try:
            yield control
        except SourceError as error:
            hint = "Where the source is gone for good, --keep-slots removes the rest."
            error.solution = f"{error.solution} {hint}"
            raise


def _shared_slots(whole: PipelineConfig, control: SourceControl | None) -> list[str]:
    """The slot that several destinations share."""
    from etl_dagster.source.slots import apply_slot_name, fetch_slot

    if control is None or not whole.destinations:
        return []
    name = apply_slot_name(whole.pipeline)
    return [name] if control.ask("looking at a slot", fetch_slot, name) else []


def _remove_shared(
    whole: PipelineConfig, control: SourceControl | None, slots: Sequence[str]
) -> None:
    """What several destinations had in common: the slot, and the state of all of them."""
    from etl_dagster.assembly import opened_store
    from etl_dagster.model.stores import RemovesPipeline
    from etl_dagster.source.slots import drop_slot

    for name in slots:
        assert control is not None
        control.ask("dropping a slot", drop_slot, name)
    with opened_store(whole) as store:
        assert isinstance(store, RemovesPipeline)
        store.remove_pipeline()


def _show_removal(
    answer: dict[str, list[str]], whole: PipelineConfig, *, with_tables: bool, keep_slots: bool
) -> None:
    pipelines = ", ".join(answer["pipelines"])
    click.echo(f"To be removed for good: the state of {pipelines}, and")
    if keep_slots:
        click.echo("  slots: none (--keep-slots); drop them on the source, they keep its WAL")
    else:
        click.echo(f"  slots: {some(answer['slots'])}")
    click.echo(f"  Meltano states: {some(answer['states'])}")
    if with_tables:
        click.echo(f"  tables with their rows: {some(answer['tables'])}")
        click.echo("  What earlier copies of a table with history left under another name stays.")
    else:
        click.echo("  tables: none; they stay as they are (--with-tables drops them)")
