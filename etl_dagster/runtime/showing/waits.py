"""What a destination says it waits for, as the status shows it."""

from __future__ import annotations

import logging

from etl_dagster.model.destination import Destination, TellsWaits, offered
from etl_dagster.runtime.failures import log_failure

_log = logging.getLogger(__name__)


class Waits:
    """Asks the destination; one that fails to answer is logged, and ends nothing but the answer."""

    def __init__(self, destination: Destination) -> None:
        self._name = destination.name
        self._tells = offered(destination, TellsWaits)
        self._has_failed = False

    @property
    def note(self) -> str | None:
        if self._tells is None:
            return None
        try:
            waits = self._tells.waiting_for()
        except Exception as error:
            # The status asks every few seconds; the log has it once, until there was an answer.
            if not self._has_failed:
                self._has_failed = True
                log_failure(_log, f"{self._name} can't tell what it waits for", error)
            return None
        self._has_failed = False
        return f"a write waits: {waits}" if waits else None
