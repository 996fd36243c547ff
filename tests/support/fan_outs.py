"""Pipelines with several destinations that run inside of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.runtime.fan_out.parts import MemberParts
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database, make_config
from tests.support.waiting import PATIENCE_S

Row = tuple[Any, ...]
#: No pause in which a test would only wait.
QUICK = FanOutPace(
    look_s=0.2,
    starting_s=0.2,
    set_aside_after_s=0.2,
    held_up_s=1.0,
    slot_again_s=0.2,
    again_s=0.5,
    shortly_s=0.1,
    return_s=0.2,
    return_at_most_s=1.0,
)


class Gated(MemoryDestination):
    """Takes changes only while its gate is open; raises `failure` instead, if it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def write_events(self, events: EventBatch) -> Any:
        # The fence of a start has no rows.
        if events.tables:
            self.gate.wait()
            if self.failure is not None:
                raise self.failure
        return super().write_events(events)


def several(database: Database, tmp_path: Path, *names: str, **overrides: Any) -> PipelineConfig:
    """A pipeline with destinations in memory, by default `left` and `right`."""
    fan_out = {
        key.removeprefix("fan_out."): overrides.pop(key)
        for key in list(overrides)
        if key.startswith("fan_out.")
    }
    config = make_config(database, tmp_path, destination={"type": "memory"}, **overrides)
    values = config.model_dump(by_alias=True, exclude={"destination", "destinations"})
    values["source"] = {"dsn": database.dsn, "publication": config.source.publication}
    values["destinations"] = {name: {"type": "memory"} for name in names or ("left", "right")}
    return parse_config(values | {"fan_out": fan_out}, {})


class Several:
    """A pipeline into several memories that is started and stopped, and what each has."""

    def __init__(
        self,
        database: Database,
        config: PipelineConfig,
        destinations: Mapping[str, MemoryDestination] | None = None,
        *,
        pace: FanOutPace = QUICK,
    ) -> None:
        self.database = database
        self.config = config
        self.pace = pace
        self.store = MemoryStore()
        self.stores = {name: MemoryStore() for name in config.destinations}
        made = destinations or {}
        self.destinations = {
            name: made.get(name) or MemoryDestination() for name in config.destinations
        }

    def make(self) -> FanOut:
        return FanOut(
            self.config,
            self.store,
            {
                name: MemberParts(member, self.stores[name], self._maker(name))
                for name, member in self.config.members().items()
            },
            pace=self.pace,
        )

    def _maker(self, name: str) -> Callable[[], Destination]:
        return lambda: self.destinations[name]

    @contextmanager
    def running(self) -> Iterator[FanOut]:
        fan_out = self.make()
        fan_out.start()
        try:
            yield fan_out
        finally:
            for destination in self.destinations.values():
                if isinstance(destination, Gated):
                    destination.gate.set()
            fan_out.shutdown()
            assert fan_out.wait(PATIENCE_S)

    def rows(self, name: str, table: str) -> list[Row]:
        return sorted(
            (
                tuple(row.get(column) for column in kept.schema.column_names)
                for kept in self.destinations[name].tables.values()
                if kept.schema.name == table
                for row in kept.rows
            ),
            key=repr,
        )

    def is_in_step(self, name: str, table: str) -> bool:
        return self.rows(name, table) == self._expected(table)

    def assert_in_step(self, *tables: str) -> None:
        for table in tables:
            for name in self.destinations:
                assert self.rows(name, table) == self._expected(table), (name, table)

    def _expected(self, table: str) -> list[Row]:
        return sorted(self.database.query(f"select * from {table}"), key=repr)
