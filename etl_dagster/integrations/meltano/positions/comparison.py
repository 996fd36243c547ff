"""Compares what Meltano shows with what the source's slot has confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.meltano.positions.bookmarks import FoundState, stream_name
from etl_dagster.integrations.meltano.positions.compared import BookmarkComparison
from etl_dagster.integrations.meltano.positions.mirrored import MirroredStates, StoredBookmark
from etl_dagster.integrations.meltano.positions.written import idle_pause_s
from etl_dagster.lsn import Lsn
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import Slot, fetch_apply_slot

#: The slot is confirmed a little after the state is written, at most by a batch, which may be this
#: large. If it is further behind, the source keeps unneeded WAL.
_SLOT_BEHIND_BYTES = 64 * 1024**2
#: The mirror may come to a state that is due so much later: the longest pause between two passes
#: (or after a failure), and as much for a busy machine.
_LATE_S = 150.0


def compare_bookmarks(
    config: PipelineConfig, tables: Mapping[str, str]
) -> dict[str, BookmarkComparison] | None:
    """Every table's bookmark and the pipeline's slot, as they are now.

    Args:
        tables: state IDs by ``schema.table``.

    Returns:
        By table; None where nothing is mirrored.

    Raises:
        EtlError: source or states can't be reached.
    """
    states = MirroredStates.of(config)
    if states is None:
        return None
    try:
        found = states.read_bookmarks()
    finally:
        states.close()
    # In this order the slot may be ahead of the bookmark, which is harmless.
    control = SourceControl(config.source, application_name="etl_dagster check")
    try:
        slot = control.ask("looking at the slot", fetch_apply_slot, config)
    finally:
        control.close()
    now = datetime.now(UTC)
    old = stale_after(config.meltano.interval_s, len(found))
    return {
        table: compare(table, found.get(state_id), slot, now=now, stale_after=old)
        for table, state_id in tables.items()
    }


def stale_after(interval_s: float, tables: int) -> timedelta:
    """The age that no state of a running mirror reaches while its table's position moves.

    Args:
        tables: how many the pipeline has.
    """
    return timedelta(seconds=idle_pause_s(interval_s, tables) + max(_LATE_S, interval_s))


def compare(
    table: str,
    stored: StoredBookmark | None,
    slot: Slot | None,
    *,
    now: datetime,
    stale_after: timedelta,
) -> BookmarkComparison:
    """One table's bookmark with the slot.

    Args:
        stale_after: a state that is older fails the check if the slot has moved past it.
    """
    confirmed = slot.confirmed_flush_lsn if slot is not None else None
    if slot is None or slot.is_lost:
        what = "does not exist" if slot is None else "is lost"
        return BookmarkComparison(
            False, True, f"The pipeline's replication slot {what} on the source."
        )
    if stored is None:
        words = "There is no Meltano state yet."
        return BookmarkComparison(False, False, words, confirmed_lsn=confirmed, has_state=False)
    bookmark = FoundState.read(stored.state, stream_name(table)).bookmark or {}
    lsn, phase = bookmark.get("lsn"), bookmark.get("phase")
    if not isinstance(lsn, int):
        words = f"The table has no position yet: {phase or 'another program wrote its state'}."
        return BookmarkComparison(
            phase is not None, False, words, None, confirmed, stored.written_at
        )
    at = Lsn(lsn)
    result = BookmarkComparison(True, False, "", at, confirmed, stored.written_at)
    ahead = result.slot_ahead_bytes or 0
    if ahead > 0 and now - stored.written_at > stale_after:
        words = (
            "The slot advances, but the state was last written at "
            f"{stored.written_at:%Y-%m-%d %H:%M:%S %Z}."
        )
        return BookmarkComparison(False, False, words, at, confirmed, stored.written_at)
    if ahead < -_SLOT_BEHIND_BYTES:
        words = (
            f"The slot is {-ahead:,} bytes behind what is durable: the source keeps unneeded WAL."
        )
        return BookmarkComparison(False, False, words, at, confirmed, stored.written_at)
    words = f"The bookmark is at {at}, the slot at {confirmed}."
    return BookmarkComparison(True, False, words, at, confirmed, stored.written_at)
