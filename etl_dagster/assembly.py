"""Builds the store and the destination that a configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.kinds import DESTINATIONS, STORES, find_kind
from etl_dagster.model.coordination import Coordination
from etl_dagster.model.destination import Destination, lacking, members
from etl_dagster.model.stores import Closes, CoordinatingStore, PipelineStore
from etl_dagster.runtime.fan_out.parts import MemberParts
from etl_dagster.runtime.local_store import coordinating
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.sharding import require_one_shard, require_seeing, require_shared
from etl_dagster.runtime.showing.observer import SILENT, Observer
from etl_dagster.runtime.tables.odd_policies import require_quarantine
from etl_dagster.runtime.tables.table_modes import require_modes
from etl_dagster.runtime.together import Together


def build_store(config: PipelineConfig) -> CoordinatingStore:
    """The store, not yet connected: the first call connects and migrates.

    One with the three small contracts alone coordinates the threads of this process.

    Raises:
        ConfigError: what the section says can't be used.
    """
    store = coordinating(_make(STORES, "state_store", PipelineStore, config))
    require_seeing(config, store)
    return store


@contextlib.contextmanager
def opened_store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    """The store for this block; closed after it, where it is one that can be closed.

    Raises:
        ConfigError: what the section says can't be used.
    """
    store = build_store(config)
    try:
        yield store
    finally:
        if isinstance(store, Closes):
            store.close()


@contextlib.contextmanager
def opened_members(config: PipelineConfig) -> Iterator[dict[str, MemberParts]]:
    """What the pipeline to each of several destinations is made of, for this block.

    Raises:
        ConfigError: what a section says can't be used.
    """
    with contextlib.ExitStack() as stores:
        parts = {}
        for name, member in config.members().items():
            # Made once here, so that what can't be used is refused before anything starts.
            build_destination(member)
            store = stores.enter_context(opened_store(member))
            parts[name] = MemberParts(member, store, partial(build_destination, member))
        yield parts


@contextlib.contextmanager
def opened_shards(config: PipelineConfig, *, observer: Observer = SILENT) -> Iterator[Together]:
    """The pipelines of all shards, not yet started, for this block; they share a memory budget.

    Raises:
        ConfigError: what a section says can't be used.
    """
    memory = MemoryBudget.of(config)

    def make(shard: PipelineConfig, store: CoordinatingStore) -> Pipeline:
        return Pipeline(shard, store, build_destination(shard), observer=observer, memory=memory)

    with contextlib.ExitStack() as stack:
        shards = config.members()
        stores = {name: stack.enter_context(opened_store(each)) for name, each in shards.items()}
        yield Together(shards, stores, make)


def build_destination(config: PipelineConfig) -> Destination:
    """The destination, not yet opened: `startup` does.

    Raises:
        ConfigError: what the section says can't be used, or another setting can't with it.
    """
    require_one_shard(config)
    destination: Destination = _make(DESTINATIONS, "destination", Destination, config)
    require_shared(config, destination)
    require_quarantine(config, destination)
    require_modes(config, destination)
    return destination


def _make(group: str, place: str, contract: type, config: PipelineConfig) -> Any:
    """The object of a section's type, which may come from another package."""
    section = getattr(config, place)
    try:
        made = find_kind(group, section.type).from_config(section, config)
        missing = sorted(name for name in members(contract) if not hasattr(made, name))
        declared = getattr(getattr(made, "capabilities", None), "offers", None) or ()
        missing += [name for further in declared for name in lacking(made, further)]
    except EtlError:
        raise
    except Exception as error:
        # Its message may hold a value of the section; the cause has it, for --debug.
        raise ConfigError(
            [f"{place}: {section.type} can't be made of this: {type(error).__name__}"],
            origin=f"pipeline {config.pipeline}",
        ) from error
    if missing:
        raise ConfigError(
            [
                f"{place}.type: what {section.type} makes, a {type(made).__name__}, lacks "
                + ", ".join(missing)
            ],
            origin=f"pipeline {config.pipeline}",
        )
    return made


def forgets(group: str, kind: str) -> bool:
    """Whether what this kind keeps ends with its process, and no other process sees it."""
    return bool(getattr(find_kind(group, kind), "in_process_only", False))


def require_processes(config: PipelineConfig) -> None:
    """Refuse a store or destination in which several processes can't meet.

    Raises:
        ConfigError: all that is in the way.
    """
    mistakes = [
        f"{name}.type: {kind} works within one process, and several processes take part"
        for name, group, kind in (
            ("state_store", STORES, config.state_store.type),
            ("destination", DESTINATIONS, config.destination.type),
        )
        if forgets(group, kind)
    ]
    if not mistakes and not issubclass(find_kind(STORES, config.state_store.type), Coordination):
        mistakes.append(
            f"state_store.type: {config.state_store.type} can't coordinate several processes "
            "(it lacks methods of etl_dagster.model.coordination.Coordination)"
        )
    if mistakes:
        raise ConfigError(mistakes, origin=f"pipeline {config.pipeline}")
