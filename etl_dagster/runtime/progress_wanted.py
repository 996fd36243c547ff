"""Another process waits for the stream's progress: an idle stream stores it only now and then."""

from __future__ import annotations

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import Board

_KEY = "progress wanted"


def want_progress(store: Board, lsn: Lsn) -> None:
    """Have the process that runs the pipeline store its progress as soon as it is at `lsn`.

    A hint: where it gets lost, the progress is stored in its time.
    """
    store.publish_status(_KEY, {"lsn": str(lsn)})


def wanted_progress(store: Board) -> Lsn | None:
    """What was asked for last, if anything was."""
    text = (store.get_status(_KEY) or {}).get("lsn")
    return None if text is None else Lsn.parse(text)
