"""What runs, until its end: started and shown."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from etl_dagster.cli.failures import NotCaughtUp, RunFailed

if TYPE_CHECKING:
    from etl_dagster.cli.stopping import Asked
    from etl_dagster.cli.views import View
    from etl_dagster.runtime.showing.status import PipelineStatus

#: So long a server may take to start up, and so often it is looked at.
STARTING_S, LOOK_AGAIN_S = 120.0, 1.0
#: Once the pipeline has ended, who waited for it has so long to notice.
_LAST_S = 1.0


class Runs(Protocol):
    """What is run: a pipeline."""

    def start(self) -> None: ...

    def shutdown(self) -> None: ...

    def wait(self, timeout_s: float | None = None) -> bool: ...

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool: ...

    def status(self) -> PipelineStatus: ...


def start(pipeline: Runs, asked: threading.Event) -> bool:
    """Start it; False where it was asked to stop before it had begun.

    Raises:
        RunFailed: what is configured is right, and failed all the same: a full disk, a server that
            went away.
        EtlError: it can't run as it is configured.
    """
    from etl_dagster.errors import EtlError, InvalidState

    try:
        pipeline.start()
    except EtlError as error:
        if asked.is_set() and isinstance(error, InvalidState):
            return False
        if error.retryable:
            raise RunFailed(error) from error
        raise
    return True


def follow(pipeline: Runs, view: View, asked: Asked, *, until_caught_up: bool) -> None:
    """Show the pipeline until it ends.

    Raises:
        RunFailed: it failed.
        NotCaughtUp: it was stopped before.
    """
    failures: list[BaseException] = []
    is_caught_up = not until_caught_up
    if until_caught_up:

        def wait() -> None:
            nonlocal is_caught_up
            try:
                is_caught_up = pipeline.wait_until_caught_up()
            except BaseException as failure:
                failures.append(failure)
            pipeline.shutdown()

        waiter = threading.Thread(target=wait, name="until caught up", daemon=True)
        waiter.start()
    try:
        with view:
            while not pipeline.wait(view.interval_s):
                view.show(pipeline.status())
            view.show(pipeline.status())
    except Exception as error:
        raise RunFailed(error) from error
    if until_caught_up:
        # Where it waits for a server that doesn't answer, it was not caught up either.
        waiter.join(_LAST_S)
    if failures:
        raise RunFailed(failures[0]) from failures[0]
    if not is_caught_up:
        tables = pipeline.status().tables.values()
        ready = sum(table.state == "ready" for table in tables)
        raise NotCaughtUp(ready, len(tables), exit_code=asked.exit_code)
