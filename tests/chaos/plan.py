"""What is done to a pipeline, in which order: decided by a seed, and by nothing that happens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Things that happen while something is wrong, or while nothing is."""

    #: What is wrong meanwhile; None: nothing.
    trouble: str | None
    #: How long, next to the time that the events take.
    seconds: float
    #: For what the trouble and each event choose themselves.
    seed: int
    events: tuple[str, ...]
    #: Until the next step.
    pause_s: float


def steps(seed: int, troubles: Mapping[str, float], events: Mapping[str, float]) -> Iterator[Step]:
    """Without end, the same for the same seed.

    Args:
        troubles: how often each comes, by name.
        events: the same of what is over at once.
    """
    rng = random.Random(seed)
    while True:
        [trouble] = rng.choices([*troubles], [*troubles.values()])
        is_troubled = rng.random() < 0.4
        yield Step(
            trouble if is_troubled else None,
            rng.uniform(0.1, 2.0) if is_troubled else 0.0,
            rng.randrange(2**32),
            tuple(rng.choices([*events], [*events.values()], k=rng.choice([1, 1, 2, 3]))),
            rng.uniform(0, 1.0),
        )
