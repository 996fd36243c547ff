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
from etl_dagster.model.states import Init, SyncDone, TableState
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS
from tests.support.scripted import config


class Tries:
    """The tries of one step, which a person started for a table that is streamed."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.count = 0
        self.hand_over()

    def hand_over(self) -> None:
        self.store.update_table_replication_states([(ORDERS, SyncDone(Lsn(1)))])

    def prepare(self, *, by_another_run: bool = False) -> TableState | None:
        """Begin a try; returns the state that the table has then."""
        run = SimpleNamespace(run_id="this", tags={})
        instance = SimpleNamespace(get_run_by_id={"this": run}.get)
        if by_another_run:
            tags = {"dagster/parent_run_id": "this", "dagster/retry_number": "1"}
            run = SimpleNamespace(run_id="another", tags=tags)
        context: Any = SimpleNamespace(
            log=logging.getLogger("test"), run=run, instance=instance, retry_number=self.count
        )
        self.count += 1
        watch = SimpleNamespace(check=lambda: None)
        copy = StepCopy(context, config(), self.store, MemoryDestination(), watch, "public.orders")
        copy.prepare(ORDERS)
        return self.store.get_table_replication_state(ORDERS)


@pytest.mark.parametrize("by_another_run", [True, False])
def test_a_try_after_one_that_did_not_reach_the_source_still_requests_the_copy(
    by_another_run: bool,
) -> None:
    """Else the run would succeed without a copy, and name another worker for it."""
    tries = Tries()
    tries.count = 1

    assert tries.prepare(by_another_run=by_another_run) == Init()


@pytest.mark.parametrize("by_another_run", [True, False])
@pytest.mark.parametrize("was_streamed", [True, False])
def test_a_try_after_a_copy_of_the_same_run_requests_no_other(
    was_streamed: bool, by_another_run: bool
) -> None:
    tries = Tries()
    if not was_streamed:
        tries.store.request_copy(ORDERS)
    assert tries.prepare() == Init()
    tries.hand_over()

    assert tries.prepare(by_another_run=by_another_run) == SyncDone(Lsn(1))


def test_a_table_that_another_worker_has_just_handed_over_is_not_a_failure() -> None:
    """A step looks at the state, and takes the lease a moment later."""
    store = MemoryStore()
    store.update_table_replication_states([(ORDERS, SyncDone(Lsn(1)))])
    context: Any = SimpleNamespace(log=logging.getLogger("test"))
    watch = SimpleNamespace(check=lambda: None)
    copy = StepCopy(context, config(), store, MemoryDestination(), watch, "public.orders")

    with pytest.raises(LeaseLost, match="another worker has handed over"):
        copy.lead(ORDERS)
