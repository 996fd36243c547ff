"""Notes for a store of several processes that has none: they are statuses there, as before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from etl_dagster.model.coordination import Board, Coordination
from etl_dagster.model.stores import CoordinatingStore


class _NotesInStatuses:
    """What is added to the store's own methods; a class derived from it passes those on."""

    _store: Board

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        return self._store.get_status(key)

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        self._store.publish_status(key, note)


def noting_in_statuses(store: Coordination) -> CoordinatingStore:
    """The store, with `get_note` and `put_note` over its statuses; those must be durable."""
    kind = type(store)
    warnings.warn(
        f"{kind.__name__} has no get_note() and put_note(), see "
        "etl_dagster.model.coordination.Notes: they are kept as statuses, and lost where those are",
        DeprecationWarning,
        stacklevel=3,
    )
    # Properties of a class of its own: `isinstance` finds each contract that the store has.
    names = [name for name in dir(kind) if not name.startswith("_")]
    passed_on = {name: property(_passing_on(name)) for name in names}
    adapted: Any = type(kind.__name__, (_NotesInStatuses,), passed_on)()
    adapted._store = store
    return cast(CoordinatingStore, adapted)


def _passing_on(name: str) -> Any:
    return lambda adapted: getattr(adapted._store, name)
