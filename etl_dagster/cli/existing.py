"""The state store of a pipeline that has run before; a look must not create it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from etl_dagster.assembly import forgets, opened_store
from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.errors import ConfigError, StoreError
from etl_dagster.kinds import STORES

if TYPE_CHECKING:
    from etl_dagster.model.stores import CoordinatingStore


@contextlib.contextmanager
def existing_store(
    config: PipelineConfig, *, solution: str | None = None
) -> Iterator[CoordinatingStore]:
    """The store, open.

    Args:
        solution: what to do if the pipeline has never run; by default, to start it.

    Raises:
        ConfigError: the store is in memory, where no other process can look.
        StoreError: the store can't be reached, or the pipeline has never run.
    """
    section = config.state_store
    if forgets(STORES, section.type):
        raise ConfigError(
            [f"state_store.type: {section.type} is only seen by the pipeline's own process"],
            origin="the configuration",
        )
    with opened_store(config) as store:
        if not _knows_pipeline(store):
            raise StoreError(
                f"the state store has no pipeline {config.pipeline!r}",
                solution=solution
                or f"Start it: `{command(config, 'run')}`. If it runs elsewhere, compare "
                "`pipeline` and `state_store` with the configuration there.",
            )
        yield store


def that_ran(whole: PipelineConfig) -> dict[str, PipelineConfig]:
    """The destinations or shards of a pipeline, by name. Shards that have never run are left out,
    unless none has: a shard that was added to the configuration has no state until it is started.

    Raises:
        EtlError: the store can't be reached.
    """
    parts = whole.members() or {"": whole}
    if not whole.shards:
        return parts
    ran = {}
    for name, config in parts.items():
        with opened_store(config) as store:
            if _knows_pipeline(store):
                ran[name] = config
    return ran or parts


def _knows_pipeline(store: CoordinatingStore) -> bool:
    look = getattr(store, "knows_pipeline", None)
    return bool(look() if look is not None else store.get_table_replication_states())
