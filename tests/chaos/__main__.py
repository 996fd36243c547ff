"""Breaks a pipeline at random while rows and tables change, and compares everything in the end.

The seed decides what is done, and in which order; not when, and not what a pipeline was doing then.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tests.chaos.run import run
from tests.chaos.world import DESTINATIONS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--destination", choices=DESTINATIONS, default="duckdb")
    parser.add_argument("--folder", type=Path, help="an empty one, for what is to be kept")
    options = parser.parse_args()
    print(
        f"seed {options.seed}: again with --seed {options.seed} --minutes {options.minutes:g}"
        f" --destination {options.destination} (the same plan, not the same timing)",
        flush=True,
    )
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    run(
        options.seed,
        options.destination,
        seconds=options.minutes * 60,
        folder=options.folder,
    )


if __name__ == "__main__":
    main()
