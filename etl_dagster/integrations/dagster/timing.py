"""How long the parts of Dagster wait for each other, and how often they look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DagsterTiming:
    """Times in seconds. They are not settings, since these fit every pipeline."""

    # -- a run that copies, and the replicator that takes the table over -------------------------

    #: A replicator that is just being started or replaced holds its lease within this time.
    replicator_at_start_s: float = 15.0
    #: A copy under way continues without a replicator for this long, enough for a code location to
    #: be reloaded or a pod to be replaced. Its finished chunks stay, so it can be resumed.
    replicator_away_s: float = 30.0
    #: In place of both while the sensor is on: it starts a replicator, if only slowly.
    replicator_of_sensor_s: float = 180.0
    #: How often a copy looks for the replicator, which costs the state store a query.
    ask_for_replicator_s: float = 2.0

    # -- the end of a run ------------------------------------------------------------------------

    #: How long a canceled copy may take to end by itself.
    cancelled_s: float = 1.0
    #: How much longer, once it was told to wait for no answer of the source any more.
    given_up_s: float = 0.5
    #: How long a write that the destination has begun is waited for.
    writing_s: float = 60.0
    #: The same if no replicator runs: Dagster itself may be shutting down, and waits for its runs.
    writing_of_orphan_s: float = 10.0

    # -- steps on Celery -------------------------------------------------------------------------

    #: Workers that are just being started or replaced answer within this time.
    celery_workers_within_s: float = 30.0
    #: How long workers may take to answer a question that is sent to all of them.
    celery_answer_s: float = 1.0
    #: How often they are asked which tasks they have.
    celery_ask_every_s: float = 3.0
    #: While no worker answers, the run's log says so this often.
    celery_silent_s: float = 60.0

    # -- the sensor ------------------------------------------------------------------------------

    #: How long the next run waits after one that failed; doubled for each failure in a row.
    first_pause_s: float = 15.0
    longest_pause_s: float = 900.0
    #: How often the sensor asks what the mirror of Meltano's positions did, which opens the store.
    notices_s: float = 15.0


DAGSTER_TIMING = DagsterTiming()
