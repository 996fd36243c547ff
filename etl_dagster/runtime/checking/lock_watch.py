"""Says which sessions keep published tables to themselves."""

from __future__ import annotations

import logging
from collections.abc import Collection

from etl_dagster.source.control import SourceControl
from etl_dagster.source.locks import LONG_S, fetch_exclusive_locks

_log = logging.getLogger(__name__)


class LockWatch:
    """A locked table can't be copied, while its changes, and all other tables, stream on."""

    def __init__(self, control: SourceControl, *, older_than_s: float = LONG_S) -> None:
        self._control = control
        self._older_than_s = older_than_s
        #: Session and relation, with the relation's name.
        self._told: dict[tuple[int, int], str] = {}

    def look(self, relation_ids: Collection[int]) -> None:
        """Log locks of these relations that have lasted for some seconds, each once.

        Raises:
            EtlError: the source can't be asked.
        """
        locks = self._control.ask(
            "looking at locks", fetch_exclusive_locks, older_than_s=self._older_than_s
        )
        now = {(lock.pid, lock.relation_id): lock for lock in locks}
        for key, lock in now.items():
            if lock.relation_id in relation_ids and key not in self._told:
                self._told[key] = lock.relation
                _log.warning(
                    "%s is locked by another session: %s %s an ACCESS EXCLUSIVE lock. It can't be "
                    "copied meanwhile; what is streamed continues",
                    lock.relation,
                    lock.holder,
                    "has" if lock.is_granted else "waits for",
                )
        for key in self._told.keys() - now.keys():
            _log.info("%s is free again", self._told.pop(key))
