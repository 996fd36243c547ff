"""Who is told what a pipeline does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from etl_dagster.runtime.showing.events import Event

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of each event, from any thread of the pipeline: it must be quick, and never wait."""

    def observe(self, event: Event) -> None: ...


class Observers:
    """Tells several; what one of them fails with is logged once, and holds nothing up."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._failed: set[int] = set()

    def observe(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception as error:
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    _log.warning(
                        "%s failed (%s); the pipeline continues, and its metrics may be incomplete",
                        type(observer).__name__,
                        type(error).__name__,
                    )


#: No one is told.
SILENT: Final[Observer] = Observers(())
