"""Checks of source, state store and destination, which change nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from etl_dagster.assembly import build_destination, build_store, forgets, opened_store
from etl_dagster.cli.failures import NotReady
from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.errors import (
    EtlError,
    SlotError,
    SlotInvalidated,
    SourceError,
    SourceUnreachable,
    StoreError,
    StoreRestored,
)
from etl_dagster.kinds import DESTINATIONS, STORES
from etl_dagster.model.destination import ChecksItself, ChecksNames, offered
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Errored, TimedRetry
from etl_dagster.model.stores import CoordinatingStore, KnowsPipeline
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.checking.check import Check
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.checking.preflight import run_checks
from etl_dagster.runtime.checking.spool import check_spool
from etl_dagster.runtime.runner import describe_runner
from etl_dagster.runtime.showing.stopped import what_to_do
from etl_dagster.runtime.slot import require_continuable
from etl_dagster.runtime.tables.coming_copies import coming_copies
from etl_dagster.runtime.tables.representation import chosen_tables, held_otherwise
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import (
    Slot,
    apply_slot_names,
    fetch_apply_slot,
    fetch_copying_slots,
    table_sync_slot_name,
)
from etl_dagster.stores.postgres.config import PostgresStoreConfig
from etl_dagster.words import human_bytes, names


def all_checks(config: PipelineConfig) -> list[Check]:
    """All that the doctor reports."""
    published: list[PublishedTable] = []
    source = run_checks(config, published)
    found = check_continuation(config, source, published)
    # Both find a lost slot. That a slot is missing is only wrong if the pipeline has run.
    failed = {check.name for check in source if check.failure is not None}
    better = {check.name for check in found}
    return [
        *(check for check in source if check.name in failed or check.name not in better),
        *(check for check in found if check.name not in failed),
        _check_state_store_elsewhere(config, source),
        check_destination(config),
        *check_names(config, published),
        *check_positions(config),
        *check_spool(config),
    ]


def running_process(config: PipelineConfig) -> str | None:
    """What runs the pipeline, such as `` (PID 71 on host db1, ...)``; None if no process does."""
    if forgets(STORES, config.state_store.type):
        return None
    try:
        with opened_store(config) as store:
            if _can_be_read(store) and store.is_leased("apply"):
                return describe_runner(store)
    except EtlError:
        pass  # the store's own check reports it
    return None


def require_all(config: PipelineConfig) -> None:
    """Refuse to start while there is an error.

    Raises:
        EtlError: the one thing in the way, or all of them at once.
    """
    refuse(failed_checks(config))


def failed_checks(config: PipelineConfig) -> list[EtlError]:
    """What stands in the way of a start."""
    return [check.failure for check in all_checks(config) if check.failure is not None]


def refuse(failures: Sequence[EtlError]) -> None:
    """Raise the failures, if there are any.

    Raises:
        EtlError: the one thing in the way, or all of them at once.
    """
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise NotReady(failures)


def check_continuation(
    config: PipelineConfig, source: Sequence[Check], published: Sequence[PublishedTable]
) -> list[Check]:
    """Whether the source is where the pipeline left it: the cluster, its history, the slots.

    Args:
        source: the checks of the source by itself; if it can't be reached, nothing is added.
        published: the tables that were found there.
    """
    if forgets(STORES, config.state_store.type) or any(
        c.name == "connection" and c.failure for c in source
    ):
        return []
    control = SourceControl(config.source, application_name="etl_dagster doctor")
    try:
        with opened_store(config) as store:
            return (
                list(_continuation(config, store, control, published))
                if _can_be_read(store)
                else []
            )
    except EtlError:
        return []  # the store's own check reports it
    finally:
        control.close()


def _continuation(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl,
    published: Sequence[PublishedTable],
) -> Iterator[Check]:
    if not store.get_table_replication_states():
        return
    try:
        control.ask("identifying the source", OriginCheck(config, store).look)
    except SourceUnreachable:
        return
    except SourceError as failure:
        yield Check.error("source's history", failure)
    slot = control.ask("looking at the slot", fetch_apply_slot, config)
    name = apply_slot_names(config)[-1] if slot is None else slot.name
    try:
        require_continuable(slot, name, store)
    except SlotError as failure:
        # The checks of the source report a slot that the next start replaces.
        if not (isinstance(failure, SlotInvalidated) and config.on_lost_slot != "stop"):
            yield Check.error("slot", failure)
    slots = {
        slot.name: slot
        for slot in control.ask("looking at the slots", fetch_copying_slots, config.pipeline)
    }
    if slots:
        yield _copying_slots(slots.values())
    schemas = _newest_schemas(store)
    yield from _stopped_tables(config, store, slots, schemas)
    yield from _held_otherwise(config, schemas, published)
    yield from _copied_again(config, store, published)


def _newest_schemas(store: CoordinatingStore) -> Mapping[TableId, TableSchema]:
    versions = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    return {schema.id: schema for schema in versions}


def _held_otherwise(
    config: PipelineConfig,
    schemas: Mapping[TableId, TableSchema],
    published: Sequence[PublishedTable],
) -> Iterator[Check]:
    """Columns that another version copied, or that were copied with other settings."""
    for table in published:
        known = schemas.get(table.schema.id)
        if known is None or not (columns := held_otherwise(table.schema, known, config)):
            continue
        again = command(config, "reset", table.schema.name)
        yield Check.warning(
            "types of columns",
            f"{table.schema.name}: {names(columns)} arrive as they did when the table was copied, "
            "not as `nested`, `numeric`, `odd_values` and the types of this version have it now",
            f"To change that, copy the table again: `{again}`",
        )


def _copied_again(
    config: PipelineConfig, store: CoordinatingStore, published: Sequence[PublishedTable]
) -> Iterator[Check]:
    """Tables that the next start copies again because their settings changed."""
    for coming in coming_copies(config, store, [table.schema for table in published]):
        yield Check.warning(
            "copied again",
            f"{coming}. With the next start, {coming.consequence}",
            coming.solution,
        )


def _copying_slots(slots: Collection[Slot]) -> Check:
    """The slots of tables and groups that are being copied, or whose copy was interrupted."""
    listed = [
        f"{slot.name} keeps {human_bytes(slot.retained_bytes)} of WAL"
        + ("" if slot.active else ", nothing reads it now")
        for slot in slots
    ]
    return Check.ok("slots of copies", names(listed))


def _stopped_tables(
    config: PipelineConfig,
    store: CoordinatingStore,
    slots: Mapping[str, Slot],
    schemas: Mapping[TableId, TableSchema],
) -> Iterator[Check]:
    """Tables that stopped until a person acts, and the WAL that is kept for them."""
    for table_id, state in store.get_table_replication_states().items():
        if not isinstance(state, Errored) or isinstance(state.retry, TimedRetry):
            continue
        schema = schemas.get(table_id)
        table = f"table {table_id}" if schema is None else schema.name
        slot = slots.get(table_sync_slot_name(config.pipeline, table_id))
        solution = what_to_do(state, table, config)
        if slot is None:
            yield Check("stopped table", "error", f"{table}: {state.reason}", solution)
            continue
        yield Check(
            "stopped table",
            "error",
            f"{table}: {state.reason}; its slot {slot.name!r} keeps "
            f"{human_bytes(slot.retained_bytes)} of WAL",
            f"{solution} To give the table up, take it out of the publication: its slot is dropped "
            "then.",
        )


def _check_state_store_elsewhere(config: PipelineConfig, source: Sequence[Check]) -> Check:
    """As `check_state_store`, unless the store is in a source that can't be reached."""
    section = config.state_store
    is_there = isinstance(section, PostgresStoreConfig) and section.dsn is None
    if is_there and any(check.name == "connection" and check.failure for check in source):
        return Check.warning(
            "state store", "in the source, which can't be reached: not checked", solution=""
        )
    return check_state_store(config)


def check_state_store(config: PipelineConfig) -> Check:
    """Whether the state store can be reached and used."""
    name, section = "state store", config.state_store
    if forgets(STORES, section.type):
        return Check.warning(
            name,
            f"{section.type}: every start copies all tables again",
            "Set state_store.type to postgres to keep what was done.",
        )
    return _check(name, lambda: _ask(build_store(config), section.type))


def check_destination(config: PipelineConfig) -> Check:
    """Whether the destination can be written."""
    name, section = "destination", config.destination
    if forgets(DESTINATIONS, section.type):
        return Check.warning(
            name,
            f"{section.type}: everything is lost when the process ends",
            "For more than a trial, set destination.type to duckdb.",
        )
    return _check(name, lambda: _ask_destination(config))


def check_names(config: PipelineConfig, published: Sequence[PublishedTable]) -> Iterator[Check]:
    """Whether names that differ in the source are the same at the destination.

    This doesn't prevent a start: only the tables concerned stop.
    """
    try:
        destination = build_destination(config)
    except EtlError:
        return  # the destination's own check reports it
    checking = offered(shaping(destination, config), ChecksNames)
    if checking is None:
        return
    tables = chosen_tables(published, config)
    for clash in checking.check_names([table.schema for table in tables]):
        yield Check(
            "names",
            "error",
            clash,
            "Rename one of them in the source or by `name` under `tables`, or leave it out of the "
            "publication.",
        )


def _ask_destination(config: PipelineConfig) -> str:
    """What the destination's own check finds; it must belong to the pipeline."""
    destination = build_destination(config)
    found = _ask(destination, config.destination.type)
    try:
        with opened_store(config) as store:
            if _can_be_read(store):
                Belonging(config, store, destination).require()
    except StoreRestored:
        raise
    except StoreError:
        pass  # the store's own check reports it
    return found


def _can_be_read(store: CoordinatingStore) -> bool:
    """Whether the pipeline has run on the store, and reading it doesn't change its tables."""
    if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
        return False
    pending = getattr(store, "pending_migrations", None)
    return pending is None or not pending()


def check_positions(config: PipelineConfig) -> list[Check]:
    """Whether positions can be mirrored, where their place is not the state store's.

    This is never an error: the pipeline runs without them.
    """
    if not config.meltano.enabled or config.meltano.state_backend is None:
        return []
    from etl_dagster.integrations.meltano.positions.mirrored import state_location
    from etl_dagster.integrations.meltano.states.errors import (
        StateSchemaMissing,
        StateTablesMissing,
    )
    from etl_dagster.integrations.meltano.states.storage import StateStorage, StorageOptions

    name = "meltano state"
    try:
        location = state_location(config)
        assert location is not None
        where = f"positions are mirrored at {location.shown}"
        # The check must not create the tables.
        options = StorageOptions(create_tables=False)
        with contextlib.closing(StateStorage(location, options=options)) as storage:
            storage.require_writable()
    except StateSchemaMissing as error:
        return [Check.warning(name, error.reason, error.solution)]
    except StateTablesMissing:
        return [Check.ok(name, f"{where}; the first start makes the tables")]
    except EtlError as error:
        return [Check.warning(name, error.reason, error.solution)]
    return [Check.ok(name, where)]


def _ask(subject: object, kind: str) -> str:
    """What the own check of the store or destination finds, if it has one."""
    checking = offered(subject, ChecksItself)
    return f"{kind}; it can't be checked before the start" if checking is None else checking.check()


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check.ok(name, look())
    except EtlError as error:
        return Check.error(name, error)
    except Exception as error:
        # Another library's error: its message may hold a password.
        failure = EtlError(
            f"the check of the {name} itself failed: {type(error).__name__}",
            solution=f"Read the documentation of the {name}'s type, or report it to its author.",
        )
        failure.__cause__ = error
        return Check.error(name, failure)
