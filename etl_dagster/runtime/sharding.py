"""What the shards of a pipeline know of each other: which tables another one has.

Each has states of its own, so two of them may come by the same table: by a publication that was
altered, or by a start that reads two publications while that is done. A shard writes down that it
has a table before it looks whether another one has it, too. So of two that begin at the same time,
at least one sees the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from etl_dagster.config import PipelineConfig
from etl_dagster.config.names import BETWEEN
from etl_dagster.errors import ConfigError, TableOfAnotherShard
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import TableState
from etl_dagster.model.stores import CoordinatingStore, DestinationStore, SeesOtherPipelines


def require_one_shard(config: PipelineConfig) -> None:
    """Refuse the configuration of all shards where that of one is needed.

    Raises:
        ConfigError: it is that of all.
    """
    if config.shards:
        known = ", ".join(config.members())
        raise ConfigError(
            [f"shards: there are several ({known}); this needs one of them"],
            origin=f"pipeline {config.pipeline}",
        )


def require_shared(config: PipelineConfig, destination: Destination) -> None:
    """Refuse a destination that several pipelines can't write to at a time.

    Raises:
        ConfigError: it doesn't say that they can.
    """
    if config.sharding is not None and not destination.capabilities.shards:
        raise ConfigError(
            [
                f"shards: a destination of type {destination.name} can't be written by several "
                "shards at a time"
            ],
            origin=f"pipeline {config.sharding.pipeline}",
        )


def require_seeing(config: PipelineConfig, store: object) -> None:
    """Refuse a store in which shards can't see each other.

    Raises:
        ConfigError: it keeps one pipeline alone.
    """
    if config.sharding is not None and not isinstance(store, SeesOtherPipelines):
        raise ConfigError(
            [
                f"state_store.type: in {config.state_store.type} the shards of a pipeline can't "
                "see each other (it has no states_of())"
            ],
            origin=f"pipeline {config.sharding.pipeline}",
        )


def held_by_others(
    config: PipelineConfig, store: CoordinatingStore, table_ids: Collection[TableId]
) -> dict[TableId, str]:
    """Those of the tables that another shard has, with its name."""
    sharding = config.sharding
    if sharding is None or not table_ids:
        return {}
    require_seeing(config, store)
    assert isinstance(store, SeesOtherPipelines)
    return {
        table_id: name
        for name in sharding.others
        for table_id in store.states_of(sharding.pipelines[name]).keys() & set(table_ids)
    }


def of_another(config: PipelineConfig, name: str, other: str) -> TableOfAnotherShard:
    """The error for a table that another shard has."""
    assert config.sharding is not None
    return TableOfAnotherShard(
        name,
        other,
        shard=config.sharding.name,
        publication=config.sharding.publications[other],
    )


def of_shards_left_out(config: PipelineConfig, strangers: Sequence[str]) -> str | None:
    """What to do where a pipeline at the destination is named as a shard of this one."""
    whole = config.pipeline if config.sharding is None else config.sharding.pipeline
    begins = f"{whole}{BETWEEN}"
    names = [each.removeprefix(begins) for each in strangers if each.startswith(begins)]
    if len(names) < len(strangers):
        return None
    left_out = ", ".join(f"shards.{name}" for name in names)
    return (
        f"Put {left_out} back into the configuration, by this name and with its publication. To "
        f"remove a shard, move its tables, then `etl-dagster remove --shard {names[0]}`, and take "
        "it out of the configuration last. Where its state is gone already, have the destination "
        f"forget it: {how_to_forget(strangers[0])}"
    )


def how_to_forget(pipeline: str) -> str:
    """The statement with which a person has a destination forget a shard."""
    return f"DELETE FROM _etl.pipelines WHERE pipeline = '{pipeline}';"  # noqa: S608  (shown)


def known_to_all(config: PipelineConfig, store: CoordinatingStore) -> DestinationStore:
    """The store as the destination is given it: it knows the tables of all shards.

    A destination replaces a table whose name a new one has, once the pipeline has forgotten it;
    that of another shard is not forgotten.
    """
    return store if config.sharding is None else cast(DestinationStore, _KnownToAll(config, store))


class _KnownToAll:
    """Passes everything on, and has states of the other shards' tables as well."""

    def __init__(self, config: PipelineConfig, store: CoordinatingStore) -> None:
        require_seeing(config, store)
        assert config.sharding is not None
        self._others = config.sharding.other_pipelines
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        state = self._store.get_table_replication_state(table_id)
        if state is not None:
            return state
        assert isinstance(self._store, SeesOtherPipelines)
        found = (self._store.states_of(pipeline).get(table_id) for pipeline in self._others)
        return next((state for state in found if state is not None), None)
