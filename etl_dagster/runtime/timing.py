"""How long the workers of a pipeline wait for each other, and how often they look."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.source.locks import LONG_S


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds, where nothing else is said. Not a setting: these fit every pipeline."""

    # -- a stream ----------------------------------------------------------------------------

    #: An idle stream's position is stored and confirmed this often. Each time writes a row in the
    #: state store; where that is the source itself, it is WAL that the slot sees again.
    idle_confirm_s: float = 10.0
    #: On an idle server the stream tells its position only when asked.
    ask_position_s: float = 0.2
    lease_check_s: float = 1.0

    # -- the hand-over, as the apply worker sees it ------------------------------------------

    #: States are read again at least this often, should a notification get lost.
    refresh_s: float = 1.0
    #: How long the stream waits for tables that were given a target. Table sync workers
    #: ask when they are close, so it takes a moment; one that stalls is told to ask again.
    catchup_wait_s: float = 5.0
    #: How long a table whose target was withdrawn waits before it is given one again; the pause
    #: doubles with each target that it misses.
    withdrawn_pause_s: float = 2.0
    longest_withdrawn_pause_s: float = 60.0

    # -- the hand-over, as a table sync worker sees it ---------------------------------------

    #: Reaching a marker took less than this: the stream is as close as it gets.
    close_s: float = 1.0
    #: A table that changes faster than it can be replayed asks all the same, after so many markers.
    most_markers: int = 20
    #: A copy waits for its hand-over as long as a process runs the pipeline, however slow that is.
    #: Without one it is given up after this long; a pipeline that is restarted is back before.
    handover_s: float = 300.0
    pipeline_check_s: float = 2.0

    # -- copies ------------------------------------------------------------------------------

    #: How long a worker waits for its table's name before it lets another table have its turn.
    name_wait_s: float = 15.0

    # -- slots -------------------------------------------------------------------------------

    #: A connection that broke is known to its server within so long, mostly at once.
    idle_slot_s: float = 10.0
    #: How often the slots of tables that stopped are measured.
    kept_slots_s: float = 5.0

    # -- the pipeline ------------------------------------------------------------------------

    #: How often the publication is read again; less often where it is large.
    membership_s: float = 5.0
    #: Sessions that lock a table are named once their transaction is older than this.
    long_lock_s: float = LONG_S
    #: How often old versions of schemas are forgotten.
    prune_s: float = 3600.0
    #: A stream that lived so long starts its retries from zero when it breaks.
    stable_s: float = 60.0
    #: From being told to stop on, servers may take so long to answer. A write of the destination
    #: that is under way is waited for.
    abandon_s: float = 1.0


TIMING = Timing()
