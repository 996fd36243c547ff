"""How long what concerns several destinations may take, and how often it is tried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FanOutPace:
    """Seconds. A pause that has an ``at_most_s`` doubles up to that."""

    #: How often the destinations are compared.
    look_s: float = 1.0
    #: The first destination that runs is not shown before the others had so long to start. One that
    #: doesn't read for this long, while others do, hangs in its start.
    starting_s: float = 15.0
    #: A destination whose pipeline failed is set aside after so long, unless all of them fail.
    set_aside_after_s: float = 5.0
    #: One that is waited for in every look for this long is slower than the others, and not only
    #: late.
    held_up_s: float = 5.0
    #: A destination that doesn't get, in this time, to where another one was at its beginning
    #: is stopped, or is slower by so much that it makes no difference.
    standstill_s: float = 15.0
    #: One that is past the budget for this long, and not set aside, is reported.
    tolerated_s: float = 30.0
    #: A slot that could not be made is tried again after so long.
    slot_again_s: float = 10.0
    #: A pipeline that has failed is started again after so long.
    again_s: float = 15.0
    again_at_most_s: float = 600.0
    #: ... and one whose tables are to be copied again, after so long.
    shortly_s: float = 1.0
    #: A pipeline that was asked to end, and whose destination answers, has ended by then.
    ends_within_s: float = 30.0
    #: From being told to stop on, servers may take so long to answer; each destination's pipeline
    #: ends before.
    abandon_s: float = 2.0
    #: How often it looks for requests for resets; a query for each destination.
    resets_s: float = 2.0
    #: A return to the shared stream that failed is tried again after so long.
    return_s: float = 2.0
    return_at_most_s: float = 120.0
    #: The shared connection is opened once every destination that reads it has come, or after so
    #: long: each has pauses of its own after a failure.
    gather_s: float = 10.0
    #: How long a destination waits for its place between two transactions before it is stopped and
    #: tries again; a large transaction may take that long to read.
    place_s: float = 60.0


#: What users get.
PACE = FanOutPace()
