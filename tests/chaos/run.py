"""A run: steps of a plan, each reported with its time, and the comparison at the end."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from etl_dagster.errors import EtlError
from tests.chaos.comparing import require_once, settle
from tests.chaos.plan import Step, steps
from tests.chaos.troubles import EVENTS, TROUBLES
from tests.chaos.world import Kind, World
from tests.support.waiting import wait_until


def run(
    seed: int,
    kind: Kind,
    *,
    seconds: float = 0.0,
    least_steps: int = 0,
    rows: int = 3000,
    folder: Path | None = None,
) -> None:
    """Break a pipeline for this long, and in so many steps at least; raises what stays wrong.

    Args:
        folder: an empty one, for the servers, the logs and the file; kept.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-chaos-")))
        world = World.build(stack, seed, kind, folder, rows)
        begun = time.monotonic()
        plan = steps(
            seed,
            {name: weight for name, (_, weight) in TROUBLES.items()},
            {name: weight for name, (_, weight) in EVENTS.items()},
        )
        for number, step in enumerate(plan):
            if time.monotonic() - begun >= seconds and number >= least_steps:
                break
            Doing(world, step, begun).do()
        try:
            settle(world)
            require_once(world)
        except BaseException:
            print("\n".join(["what the owner did:", *world.owner.log]))
            raise
        print(
            f"{time.monotonic() - begun:6.1f} s  all is as at the source, and was applied once;"
            f" killed: {world.workers.kills}"
        )


class Doing:
    """One step; what can't be done just now is reported and skipped."""

    def __init__(self, world: World, step: Step, begun: float) -> None:
        self._world, self._step, self._begun = world, step, begun
        self._rng = random.Random(step.seed)

    def do(self) -> None:
        self._keep_alive()
        name = self._step.trouble
        if name is None:
            self._have_events_happen()
        else:
            make, _ = TROUBLES[name]
            with make(self._world, self._rng) as what:
                self._tell(f"{what} for {self._step.seconds:.1f} s and more")
                self._have_events_happen()
                time.sleep(self._step.seconds)
            self._tell("is over")
        time.sleep(self._step.pause_s)

    def _have_events_happen(self) -> None:
        for name in self._step.events:
            event, _ = EVENTS[name]
            try:
                self._tell(event(self._world, self._rng))
            except (EtlError, psycopg.Error) as error:
                self._tell(f"could not: {name}: {type(error).__name__}")
                self._connect_owner_again()

    def _connect_owner_again(self) -> None:
        try:
            self._world.owner.connect_again()
        except psycopg.Error:
            pass  # its server is down

    def _keep_alive(self) -> None:
        """The store can be asked, since nothing is wrong now; perhaps not at once."""

        def is_kept() -> bool:
            try:
                self._world.workers.keep_alive()
            except EtlError:
                return False
            return True

        wait_until(is_kept)

    def _tell(self, what: str) -> None:
        print(f"{time.monotonic() - self._begun:6.1f} s  {what}", flush=True)
