"""Workers killed and stopped, servers down, connections broken, a full disk, tables altered, all at
random: what arrives is what the source has, and each change once.

For longer, and other destinations: ``make chaos SEED=... MINUTES=... DESTINATION=...``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.plan import steps
from tests.chaos.run import run
from tests.chaos.world import Kind

STEPS, ROWS = 8, 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kinds", [("duckdb",), ("postgres", "fan-out")], ids=["a file", "a server, alone or not"]
)
def test_everything_goes_wrong_and_nothing_is_lost_or_doubled(
    kinds: Sequence[Kind], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    kind = random.Random(seed).choice(kinds)
    print(f"seed {seed}, destination {kind}")
    run(seed, kind, least_steps=STEPS, rows=ROWS, folder=tmp_path)


def test_a_seed_names_a_plan() -> None:
    def plan(seed: int) -> list[object]:
        return [*itertools.islice(steps(seed, {"stalled": 1}, {"kill": 1, "cut": 2}), 50)]

    assert plan(1) == plan(1) != plan(2)
