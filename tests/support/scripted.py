"""What a test passes to a worker in place of a server and of time, and decides what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.timing import Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.control import SourceControl
from etl_dagster.stores.memory import MemoryStore
from tests.unit import wire


class ManualClock:
    """Stands still until it is moved; a wait moves it by its own length."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        return self._now_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.pass_by(timeout_s)
        return event.is_set()

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds


class ScriptedSource(SourceControl):
    """Answers each question as the test says, by the function that would ask the server."""

    def __init__(self, answers: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__(config().source, application_name="scripted")
        #: May be changed at any time.
        self.answers = answers
        #: What was asked, in order.
        self.asked: list[str] = []

    def ask(self, what: str, question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(question.__name__)
        # A method is known by its function, whatever object it is of.
        question = getattr(question, "__func__", question)
        if question not in self.answers:
            raise AssertionError(f"the script has no answer to {question.__name__} ({what})")
        return self.answers[question](*args, **kwargs)


class ScriptedStream:
    """A stream of a few reads: each gives a frame, or does something; then it is over."""

    start_lsn = Lsn(1000)

    def __init__(self, session: ReplicationSession, script: list[Callable[[], None] | bytes]):
        self.session = session
        self.script = script
        self.calls: list[str] = []
        self.confirmed: list[Lsn] = []

    @property
    def is_over(self) -> bool:
        return not self.script

    def open(self) -> None:
        self.calls.append("open")

    def read(self, timeout_s: float) -> bool:
        step = self.script.pop(0)
        if not isinstance(step, bytes):
            step()
            return False
        return drain(self.session, [step])

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def confirm(self, lsn: Lsn) -> None:
        self.confirmed.append(lsn)

    def request_keepalive(self) -> None:
        self.calls.append("request_keepalive")

    def close(self) -> None:
        self.calls.append("close")


def drain(session: ReplicationSession, frames: list[bytes]) -> bool:
    """Move frames into a session, as a connection does; whether its batch is full."""
    ended: tuple[int, memoryview] = (0, memoryview(b""))
    left: Iterator[tuple[int, memoryview]] = iter([(len(f), memoryview(f)) for f in frames])
    return session.drain(partial(next, left, ended)) > 0


def transaction(lsn: int, *ids: int, table_id: int = 1) -> list[bytes]:
    """The frames of a transaction that inserts these rows; its commit record ends 50 bytes on."""
    column = RelationColumn("id", 23, -1, True)
    messages = [
        wire.begin(lsn),
        wire.relation(Relation(table_id, "public", f"table_{table_id}", "d", (column,))),
        *(wire.insert(table_id, [str(value)]) for value in ids),
        wire.commit(lsn, lsn + 50),
    ]
    return [wire.xlog_data(message) for message in messages]


def config(**settings: Any) -> PipelineConfig:
    """The configuration of a pipeline whose source can't be reached."""
    source = {"host": "nowhere.invalid", "user": "u", "database": "d", "publication": "p"}
    return parse_config({"pipeline": "scripted", "source": source, **settings}, {})


def worker_parts(
    *,
    settings: PipelineConfig | None = None,
    store: CoordinatingStore | None = None,
    destination: Destination | None = None,
    control: SourceControl | None = None,
    stop: threading.Event | None = None,
    clock: ManualClock | None = None,
    timing: Timing | None = None,
) -> WorkerParts:
    """What workers share, in memory, and with a clock that is stopped."""
    return WorkerParts(
        settings or config(),
        store or MemoryStore(),
        destination or MemoryDestination(),
        control or ScriptedSource({}),
        stop or threading.Event(),
        clock or ManualClock(),
        timing or Timing(),
    )
