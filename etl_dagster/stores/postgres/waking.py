"""Waiting for what other threads and processes change."""

from __future__ import annotations

from etl_dagster.stores.postgres.rows import StorePart

#: While nothing is heard, a wait ends this often so that its caller looks for itself.
_POLL_S = 1.0


class ListenedWakeUps(StorePart):
    """Waits that end with a notification; the first one begins to listen."""

    def wait_for_change(self, timeout_s: float) -> None:
        self._rows.open()
        self._rows.news.listen()
        if self._rows.news.is_heard:
            self._rows.news.changes.wait(timeout_s)
        else:
            self._rows.news.changes.wait(min(timeout_s, _POLL_S))

    def wake(self) -> None:
        self._rows.news.changes.bump()
