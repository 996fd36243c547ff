"""A store of one's own, with the three small contracts and nothing else, runs a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import (
    CoordinatingStore,
    PipelineStore,
    SchemaStore,
    StateStore,
    TableLifecycleStore,
)
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database


def _three_contracts_of(store: MemoryStore) -> PipelineStore:
    """An object that has the contracts' methods and no other."""
    contracts = (SchemaStore, StateStore, TableLifecycleStore)
    names = {name for contract in contracts for name in vars(contract) if name[0] != "_"}
    own: Any = type("OwnStore", (), {name: staticmethod(getattr(store, name)) for name in names})()
    assert isinstance(own, PipelineStore)
    assert not isinstance(own, CoordinatingStore)
    return own


def test_a_store_with_the_three_contracts_runs_a_pipeline_and_its_restart(
    newest_database: Database, make_config: Callable[..., PipelineConfig]
) -> None:
    newest_database.execute(
        "create table items (id int primary key)",
        "insert into items select generate_series(1, 100)",
        "create publication etl_pub for table items",
    )
    config = make_config(newest_database, destination={"type": "memory"})
    kept, destination = MemoryStore(), MemoryDestination()
    for expected in (101, 102):
        pipeline = Pipeline(config, _three_contracts_of(kept), destination)
        pipeline.start()
        try:
            newest_database.execute(f"insert into items values ({expected})")
            assert pipeline.wait_until_caught_up(60)
        finally:
            pipeline.shutdown()
            assert pipeline.wait(60)
        assert len(destination.rows("public.items")) == expected
        assert len(destination.changelog) <= expected - 100
    [state] = kept.get_table_replication_states().values()
    assert isinstance(state, Ready)
