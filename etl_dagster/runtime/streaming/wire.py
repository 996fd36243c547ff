"""Where the changes of a pipeline come from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.slot import prepare_apply_slot
from etl_dagster.runtime.streaming.feed import OpenStream, stream_of_slot
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.source.spool import Spools


@dataclass(frozen=True, slots=True)
class InProgress:
    """Transactions that have sent something and may still be rolled back."""

    transactions: int
    #: What of them is on disk.
    spooled_bytes: int


def spools_of(config: PipelineConfig) -> Spools | None:
    """Where a pipeline keeps transactions in progress; None where it isn't to read them."""
    if config.source.streaming == "off":
        return None
    return Spools(config.batch.spool_dir, config.batch.spool_max_bytes)


def in_progress(spools: Spools | None) -> InProgress:
    """What is kept there now."""
    return (
        InProgress(0, 0) if spools is None else InProgress(spools.transactions, spools.bytes_kept)
    )


class Wire(Protocol):
    """Gives a pipeline its stream, as often as the pipeline begins to stream."""

    @property
    def slot_name(self) -> str:
        """The slot that keeps WAL for the pipeline now."""
        ...

    @property
    def note(self) -> str | None:
        """What a reader of the status should know of the slot; None where nothing is special."""
        ...

    @property
    def in_progress(self) -> InProgress:
        """What is kept of transactions that haven't committed yet."""
        ...

    def prepare(self) -> Lsn:
        """Make sure that every change from what is durable on will come; where it starts.

        Before the first table is copied, and again before each stream.

        Raises:
            Stopped: told to stop.
            SlotError: changes in between would be missing, or the slot can't be made.
            EtlError: the source can't be reached or refuses.
        """
        ...

    def open(self, start_lsn: Lsn) -> OpenStream:
        """The stream that starts where `prepare` said."""
        ...


#: Makes the wire of a pipeline from its configuration, its store, its control connection, and the
#: event that tells it to stop.
MakeWire: TypeAlias = Callable[
    [PipelineConfig, CoordinatingStore, SourceControl, threading.Event], Wire
]


class OwnSlot:
    """A permanent slot that is this pipeline's alone, read by a connection of its own."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        control: SourceControl,
        stop: threading.Event,
        timing: Timing = TIMING,
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._stop = stop
        self._timing = timing
        self._spools = spools_of(config)
        self.slot_name = apply_slot_name(config.pipeline)

    @property
    def note(self) -> str | None:
        return None if self._spools is None else self._spools.note

    @property
    def in_progress(self) -> InProgress:
        return in_progress(self._spools)

    def prepare(self) -> Lsn:
        return prepare_apply_slot(
            self._store, self._control, self._config, stop=self._stop, timing=self._timing
        )

    def open(self, start_lsn: Lsn) -> OpenStream:
        return stream_of_slot(
            self._config.source,
            self.slot_name,
            start_lsn,
            application_name=f"etl_dagster apply {self._config.pipeline}",
            spools=self._spools,
        )
