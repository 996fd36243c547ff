"""The stores of this package keep what every store promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.demo.server import ServerBinaries, find_servers
from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import (
    CoordinatingStore,
    PipelineStore,
    SchemaStore,
    StateStore,
    TableLifecycleStore,
)
from etl_dagster.runtime.local_store import coordinating
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.testing import CoordinationSuite, StoreSuite
from etl_dagster.testing.changes import ORDERS, PRICES
from tests.conftest import _running as running
from tests.support.database import Database

#: The oldest server, which may lack something; all other tests have their stores in the newest.
_FOUND: dict[str, ServerBinaries] = {f"pg{found.major}": found for found in find_servers()[-1:]}


class ChecksOfOurOwn(StoreSuite):
    """What the suite can't ask of every store."""

    def test_schemas_are_ordered_by_table_and_version(self, store: PipelineStore) -> None:
        for schema in (PRICES, ORDERS.at(Lsn(100)), ORDERS):
            store.store_table_schema(schema)

        assert list(store.get_table_schemas()) == [ORDERS, ORDERS.at(Lsn(100)), PRICES]

    def test_a_table_without_an_earlier_state_is_named(self, store: PipelineStore) -> None:
        with pytest.raises(StateRollbackError, match="table 7 has no earlier state"):
            store.rollback_table_replication_state(7)


class TestMemoryStore(ChecksOfOurOwn, CoordinationSuite):
    durable = False

    def make_store(self, folder: Path) -> MemoryStore:
        return MemoryStore()


@pytest.fixture(scope="module", params=list(_FOUND))
def server_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    with Database.create(running(_FOUND[request.param])) as database:
        yield database


class TestPostgresStore(ChecksOfOurOwn, CoordinationSuite):
    """Each check has a pipeline of its own in one database."""

    @pytest.fixture(autouse=True)
    def use_database(self, server_database: Database) -> None:
        self.dsn = server_database.dsn

    def make_store(self, folder: Path) -> PostgresStore:
        return PostgresStore(self.dsn, f"shop_{folder.name}")


def three_contracts_of(store: MemoryStore) -> PipelineStore:
    """An object that has the operations of the three contracts and no other."""
    contracts = (SchemaStore, StateStore, TableLifecycleStore)
    names = {name for contract in contracts for name in vars(contract) if name[0] != "_"}
    own: Any = type("OwnStore", (), {name: staticmethod(getattr(store, name)) for name in names})()
    assert isinstance(own, PipelineStore)
    assert not isinstance(own, CoordinatingStore)
    return own


class TestStoreOfThreeContracts(StoreSuite):
    durable = False

    def make_store(self, folder: Path) -> PipelineStore:
        return three_contracts_of(MemoryStore())


class TestStoreOfThreeContractsMadeToCoordinate(CoordinationSuite):
    """What the engine adds is enough for the workers of one process."""

    durable = False

    def make_store(self, folder: Path) -> CoordinatingStore:
        return coordinating(three_contracts_of(MemoryStore()))
