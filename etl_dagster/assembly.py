"""Builds the store and the destination that a configuration names."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.kinds import DESTINATIONS, STORES, find_kind
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore, Coordination
from etl_dagster.runtime.local_store import coordinating


def build_store(config: PipelineConfig) -> CoordinatingStore:
    """The store, not yet connected: the first call connects and migrates.

    One with the three small contracts alone coordinates the threads of this process.

    Raises:
        ConfigError: what the section says can't be used.
    """
    kind = find_kind(STORES, config.state_store.type)
    return coordinating(kind.from_config(config.state_store, config))


def build_destination(config: PipelineConfig) -> Destination:
    """The destination, not yet opened: `startup` does."""
    kind = find_kind(DESTINATIONS, config.destination.type)
    destination: Destination = kind.from_config(config.destination, config)
    return destination


def forgets(group: str, kind: str) -> bool:
    """Whether what this kind keeps ends with its process, and no other process sees it."""
    return bool(getattr(find_kind(group, kind), "in_process_only", False))


def require_processes(config: PipelineConfig) -> None:
    """Refuse a store or destination in which several processes can't meet.

    Raises:
        ConfigError: all that is in the way.
    """
    mistakes = [
        f"{name}.type: {kind} is seen by one process only, and several are at work"
        for name, group, kind in (
            ("state_store", STORES, config.state_store.type),
            ("destination", DESTINATIONS, config.destination.type),
        )
        if forgets(group, kind)
    ]
    if not mistakes and not issubclass(find_kind(STORES, config.state_store.type), Coordination):
        mistakes.append(
            f"state_store.type: {config.state_store.type} can't coordinate several processes "
            "(it lacks methods of etl_dagster.model.stores.Coordination)"
        )
    if mistakes:
        raise ConfigError(mistakes, origin=f"pipeline {config.pipeline}")
