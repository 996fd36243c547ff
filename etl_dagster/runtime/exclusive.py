"""Changes a note of the state store while no other process changes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from etl_dagster.errors import StoreError
from etl_dagster.model.stores import CoordinatingStore

#: Another process needs two questions to the store for its change.
_PATIENCE_S, _AGAIN_S = 10.0, 0.02


@contextmanager
def changing_alone(store: CoordinatingStore, lease: str, what: str) -> Iterator[None]:
    """Keep other processes from changing a note between reading and writing it.

    Without that, of two changes at a time one would be lost.

    Args:
        lease: its name, the same for all that change the note.
        what: what the note is about, for the error.

    Raises:
        StoreError: another process has held the lease all the time.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (held := store.acquire_lease(lease)) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"another process keeps changing {what}", solution="Run the command again."
            )
        time.sleep(_AGAIN_S)
    try:
        yield
    finally:
        held.release()
