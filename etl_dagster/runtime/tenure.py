"""That this process runs the pipeline, and no other one does: a lease and an epoch."""

from __future__ import annotations

from etl_dagster.errors import LeaseLost, Superseded
from etl_dagster.model.coordination import Lease
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.runner import in_use, note_runner

_LEASE = "apply"


class Tenure:
    """From `begin` to `release`. Belongs to the thread that streams, once there is one."""

    def __init__(self, store: CoordinatingStore) -> None:
        self._store = store
        self._lease: Lease | None = None
        self.epoch = 0

    @property
    def has_begun(self) -> bool:
        return self._lease is not None

    def begin(self, pipeline: str) -> None:
        """Take the lease.

        Raises:
            PipelineInUse: another process has it.
        """
        self._lease = self._store.acquire_lease(_LEASE)
        if self._lease is None:
            raise in_use(self._store, pipeline)
        note_runner(self._store)

    def take_epoch(self) -> None:
        """From here on, what an older process writes can be told from what this one does."""
        self.epoch = self._store.take_epoch()

    def require(self) -> None:
        """See that the pipeline is still this process's.

        Raises:
            LeaseLost: another process has the lease.
            Superseded: another process had it meanwhile.
        """
        assert self._lease is not None
        if self._lease.is_held:
            return
        # The store was away for a moment. If no other process took our place, we keep it.
        self._lease.release()
        lease = self._store.acquire_lease(_LEASE)
        if lease is None:
            raise LeaseLost("the lease of the pipeline is held by another process")
        self._lease = lease
        if self._store.current_epoch() != self.epoch:
            raise Superseded("a newer process took over this pipeline")

    def release(self) -> None:
        if self._lease is not None:
            self._lease.release()
