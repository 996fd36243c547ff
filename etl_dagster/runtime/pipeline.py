"""A pipeline: its start, its workers, its end."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import PipelineStore
from etl_dagster.runtime.status import PipelineStatus


class Pipeline:
    """Replicates one publication to one destination until told to stop.

    Args:
        copies: ``own`` runs the table sync workers as threads of this process; ``elsewhere``
            leaves them to other processes that share the store, such as Dagster runs.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: PipelineStore,
        destination: Destination,
        *,
        copies: str = "own",
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Check everything, prepare slot and states, start the workers; returns once streaming.

        Raises:
            EtlError: something is wrong with configuration, source, store or destination.
            InvalidState: it was started before.
        """
        raise NotImplementedError

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came in time. Raises what the pipeline failed with."""
        raise NotImplementedError

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        """Wait until every table is ready (or errored) and what is committed now is durable."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """Ask it to stop; `wait` tells when it has. Safe in a signal handler."""
        raise NotImplementedError

    def status(self) -> PipelineStatus:
        """How things are now; cheap, from memory."""
        raise NotImplementedError
