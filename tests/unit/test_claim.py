"""A table as one worker's, whose state others may change, too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from etl_dagster.errors import LeaseLost
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Catchup, FinishedCopy, Init, SyncWait, TableState
from etl_dagster.runtime.copying.claim import Claim
from etl_dagster.stores.memory import MemoryStore

TABLE = 16384


class FasterStore(MemoryStore):
    """Another process gives the table its next state a moment before each attempt to change it."""

    others: Sequence[TableState] = ()

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        if self.others:
            other, *self.others = self.others
            self.update_table_replication_states([(table_id, other)])
        return super().transition_table_state(table_id, expected, new)


def test_an_answer_to_an_earlier_worker_does_not_end_the_next_one() -> None:
    """A worker died while it asked for the hand-over. The apply worker names a target, and
    withdraws it, while the next worker is about to take the table up."""
    store = FasterStore()
    store.update_table_replication_states([(TABLE, SyncWait(Lsn(10)))])
    claim = Claim(store, TABLE)
    claim.look()
    store.others = [Catchup(Lsn(20)), SyncWait(Lsn(20)), Catchup(Lsn(30))]

    claim.move(FinishedCopy())

    assert store.others == []
    assert store.get_table_replication_state(TABLE) == claim.state == FinishedCopy()


def test_a_newly_requested_copy_ends_a_claim() -> None:
    store = FasterStore()
    store.update_table_replication_states([(TABLE, SyncWait(Lsn(10)))])
    claim = Claim(store, TABLE)
    claim.look()
    store.others = [Catchup(Lsn(20)), Init()]

    with pytest.raises(LeaseLost, match="another process changed the state"):
        claim.move(FinishedCopy())

    assert store.get_table_replication_state(TABLE) == Init()
