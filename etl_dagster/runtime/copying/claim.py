"""A table as one worker's: its lease, and the state that the worker gave it."""

from __future__ import annotations

from typing import TypeGuard

from etl_dagster.errors import LeaseLost
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    Errored,
    SyncWait,
    TableState,
    check_transition,
)
from etl_dagster.model.stores import CoordinatingStore


class Claim:
    """Taken by a worker, until it is released.

    Two things end it before: the lease is lost, or another process gives the table another state,
    for example to have it copied again.

    Raises:
        LeaseLost: another worker has the table.
    """

    def __init__(self, store: CoordinatingStore, table_id: TableId) -> None:
        lease = store.acquire_lease(f"table:{table_id}")
        if lease is None:
            raise LeaseLost(f"another worker has table {table_id}")
        self._store = store
        self._table_id = table_id
        self.lease = lease
        #: As the worker found it or made it.
        self.state: TableState | None = None

    def look(self) -> TableState | None:
        """The state that the table has now; from here on it counts as the worker's own."""
        self.state = self._store.get_table_replication_state(self._table_id)
        return self.state

    def move(self, new: TableState) -> None:
        """Change the table's state.

        What an earlier worker had asked for (`SyncWait`), the apply worker still answers
        (`Catchup`), and withdraws, while this one takes the table up. Neither ends the claim.

        Raises:
            LeaseLost: another process did.
        """
        check_transition(self.state, new)
        if self.state is None:
            self._store.update_table_replication_states([(self._table_id, new)])
            self.state = new
            return
        while not self._store.transition_table_state(self._table_id, self.state, new):
            self._store.load_table_replication_states()
            found = self._store.get_table_replication_state(self._table_id)
            if not (_is_conversation(self.state) and _is_conversation(found)):
                raise LeaseLost(f"another process changed the state of table {self._table_id}")
            self.state = found
        self.state = new

    def require(self, name: str) -> None:
        """See that the table is still this worker's while it is copied.

        Args:
            name: the table's, for the error.

        Raises:
            LeaseLost: it is not.
        """
        if not self.lease.is_held:
            raise LeaseLost(f"the lease of {name} ended while it was copied")
        if self._store.get_table_replication_state(self._table_id) != self.state:
            raise LeaseLost(f"another copy of {name} was asked for")

    @property
    def is_ours(self) -> bool:
        """Whether the table's state is still this worker's doing, also while it is handed over."""
        current = self._store.get_table_replication_state(self._table_id)
        return self.lease.is_held and (
            current == self.state or isinstance(current, SyncWait | Catchup)
        )

    def fail(self, errored: Errored) -> bool:
        """Show a failure as the table's state, if the table is ours; whether it is shown."""
        current = self._store.get_table_replication_state(self._table_id)
        if current is None or not self.is_ours:
            return False
        return self._store.transition_table_state(self._table_id, current, errored)

    def release(self) -> None:
        self.lease.release()


def _is_conversation(state: TableState | None) -> TypeGuard[SyncWait | Catchup]:
    """Whether a worker has asked the apply worker for the hand-over."""
    return isinstance(state, SyncWait | Catchup)
