"""How long the parts of Dagster wait for each other, and how often they look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DagsterTiming:
    """In seconds. Not a setting: these fit every pipeline."""

    # -- a run that copies, and the replicator that takes the table over -------------------------

    #: A replicator that is just being started, or replaced, is there within this time.
    replicator_at_start_s: float = 15.0
    #: A copy under way continues without a replicator for this long: code locations are
    #: reloaded and pods replaced meanwhile. Its finished chunks stay, so it can be resumed.
    replicator_away_s: float = 30.0
    #: Both, while the sensor is on: it starts a replicator, if only as fast as the machine allows.
    replicator_of_sensor_s: float = 180.0
    #: Asking for it costs the state store a query.
    ask_for_replicator_s: float = 2.0

    # -- the end of a run ------------------------------------------------------------------------

    #: A copy that is cancelled may take so long to end by itself.
    cancelled_s: float = 1.0
    #: ... and after that so much longer, once it was told to ask the source nothing more.
    given_up_s: float = 0.5
    #: A write that the destination has begun is waited for, up to this.
    writing_s: float = 60.0
    #: ... and no longer than this where Dagster itself may be gone, and waits for its runs to end.
    writing_of_orphan_s: float = 10.0

    # -- steps on Celery -------------------------------------------------------------------------

    #: Workers that are just being started, or replaced, are there within this time.
    celery_workers_within_s: float = 30.0
    #: How long workers may take to answer a question that is put to all of them.
    celery_answer_s: float = 1.0
    #: How often they are asked which tasks they have.
    celery_ask_every_s: float = 3.0
    #: While no worker answers, the run's log says so this often.
    celery_silent_s: float = 60.0

    # -- the sensor ------------------------------------------------------------------------------

    #: After a run that failed, the next one waits; doubled for each in a row.
    first_pause_s: float = 15.0
    longest_pause_s: float = 900.0
    #: How often what the mirror of Meltano's positions did is looked up, which opens the store.
    notices_s: float = 15.0


DAGSTER_TIMING = DagsterTiming()
