"""A pipeline whose state store can't be reached for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import StoreUnreachable
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import TableState
from etl_dagster.model.stores import CoordinatingStore
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, running

MakeConfig = Callable[..., PipelineConfig]


class Leaving:
    """A store that is away while `is_away`."""

    def __init__(self, inner: CoordinatingStore) -> None:
        self._inner = inner
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        if self.is_away:
            raise StoreUnreachable("the state store is on holiday")
        return self._inner.get_table_replication_states()


def test_the_status_is_available_while_the_store_is_away_and_the_stream_continues_afterwards(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for table items"
    )
    config = make_config(newest_database, **{"retry.max_attempts": 100})
    with closing(build_store(config)) as inner:  # type: ignore[type-var]
        store = Leaving(inner)
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            assert pipeline.status().tables["public.items"].state == "ready"
            store.is_away = True
            while pipeline.status().phase != "retrying":
                store.wake()
            assert pipeline.status().tables["public.items"].state == "ready"
            newest_database.execute("insert into items values (1)")
            store.is_away = False
            assert pipeline.wait_until_caught_up(60)
            assert_table_in_step(newest_database, config, "items")
