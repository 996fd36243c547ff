"""A step that copies a table which other workers may have, too."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import LeaseLost
from etl_dagster.integrations.dagster.copies.step_copy import StepCopy
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import SyncDone
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS
from tests.support.scripted import config


def test_a_table_that_another_worker_has_just_handed_over_is_not_a_failure() -> None:
    """A step looks at the state, and takes the lease a moment later."""
    store = MemoryStore()
    store.update_table_replication_states([(ORDERS, SyncDone(Lsn(1)))])
    context: Any = SimpleNamespace(log=logging.getLogger("test"))
    watch = SimpleNamespace(check=lambda: None)
    copy = StepCopy(context, config(), store, MemoryDestination(), watch, "public.orders")

    with pytest.raises(LeaseLost, match="another worker has handed over"):
        copy.lead(ORDERS)
