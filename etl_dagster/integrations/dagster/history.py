"""What Dagster has recorded of a pipeline's assets, looked up a few at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dagster import AssetKey, DagsterInstance

#: Assets looked up in a tick; if there are more, it takes a few ticks until each has had its turn.
_PER_TICK = 100
#: An evaluation this long after a materialization is later even if both times lose their fractions.
_SURELY_LATER_S = 2.0


@dataclass(frozen=True)
class LastEvents:
    """The last events of one asset."""

    #: The latest materialization, in seconds since 1970-01-01 UTC; None if there is none.
    materialized_at: float | None = None
    #: The last run that is known to have materialized the asset, or to have planned to.
    run_id: str | None = None
    #: Whether that run has not ended yet.
    is_running: bool = False
    #: Whether that run has materialized it.
    has_materialized: bool = False

    def hides_checks(self, now: float) -> bool:
        """Whether Dagster hides what was evaluated before the run: it is over, or has materialized.

        False for a moment after a materialization. Some storages keep the time of an evaluation in
        whole seconds, and a new evaluation must be later than the materialization.

        Args:
            now: seconds since 1970-01-01 UTC.
        """
        if self.run_id is None or (self.is_running and not self.has_materialized):
            return False
        return self.materialized_at is None or now - self.materialized_at >= _SURELY_LATER_S


class EventHistory:
    """Remembers what was looked up, in the code server's process."""

    def __init__(self) -> None:
        self._known: dict[AssetKey, LastEvents] = {}
        self._next = 0

    def look(
        self, instance: DagsterInstance, keys: Sequence[AssetKey]
    ) -> Mapping[AssetKey, LastEvents]:
        """The last events of each asset that was looked up so far."""
        due = [keys[(self._next + n) % len(keys)] for n in range(min(_PER_TICK, len(keys)))]
        self._next = (self._next + len(due)) % max(len(keys), 1)
        before = {key: self._known.get(key, LastEvents()) for key in due}
        self._known |= dict.fromkeys(due, LastEvents())
        for record in instance.get_asset_records(due):
            entry = record.asset_entry
            latest = entry.last_materialization_record
            run_id = entry.last_run_id or None
            has_materialized = latest is not None and latest.run_id == run_id
            last = before[entry.asset_key]
            if run_id is None and last.run_id is not None:
                # The stream reported the asset after the run, and so hides the run's evaluations.
                run_id, has_materialized = last.run_id, last.has_materialized
            may_run = run_id is not None and (run_id != last.run_id or last.is_running)
            self._known[entry.asset_key] = LastEvents(
                materialized_at=latest.timestamp if latest is not None else None,
                run_id=run_id,
                is_running=may_run and _is_running(instance, run_id),
                has_materialized=has_materialized,
            )
        return self._known

    def forget(self, keys: Iterable[AssetKey]) -> None:
        for key in keys:
            with contextlib.suppress(KeyError):
                del self._known[key]


def _is_running(instance: DagsterInstance, run_id: str | None) -> bool:
    run = None if run_id is None else instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished
