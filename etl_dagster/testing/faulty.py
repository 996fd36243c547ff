"""A destination that fails on purpose: on demand, or by a plan, such as a random one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from etl_dagster.errors import DestinationUnreachable, EtlError
from etl_dagster.model.destination import (
    Capabilities,
    Destination,
    Interruptible,
    WriteResult,
    offered,
)
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.runtime.many import copying_many

Method: TypeAlias = Literal[
    "startup",
    "drop_table_for_copy",
    "drop_tables_for_copy",
    "write_table_rows",
    "write_whole_tables",
    "write_events",
]
#: The methods whose calls are tried again when they fail; `startup` is not.
WRITES: Final[frozenset[Method]] = frozenset(
    {
        "drop_table_for_copy",
        "drop_tables_for_copy",
        "write_table_rows",
        "write_whole_tables",
        "write_events",
    }
)
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Call:
    """A call, for which a plan may choose a fault."""

    method: Method
    #: How many calls of this method came before.
    number: int
    table_ids: frozenset[TableId] = frozenset()
    #: The changes of a batch; 0 for every other call.
    row_count: int = 0


@dataclass(frozen=True, slots=True)
class Refuse:
    """The call raises, and nothing is written. Without an error, a `DestinationUnreachable`."""

    error: EtlError | None = None


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Everything is written and durable, then the call fails as if its answer had been lost."""

    error: EtlError | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """The call takes this much longer."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """The call waits until `FaultyDestination.release`, and is carried out then.

    It fails if the pipeline interrupts or shuts down the destination before that.
    """


Fault: TypeAlias = Refuse | LoseAnswer | Delay | Hang
#: Returns the fault of a call, or None to let it pass. Called once for each call, never by two
#: threads at once.
Plan: TypeAlias = Callable[[Call], Fault | None]


def at_random(
    seed: int,
    *,
    refuse: float = 0.02,
    lose_answer: float = 0.02,
    delay: float = 0.05,
    hang: float = 0.0,
    longest_delay_s: float = 0.1,
    methods: frozenset[Method] = WRITES,
) -> Plan:
    """A plan in which calls have faults with these probabilities.

    A call's fault depends on the seed, the method and the call's number, not on the order of
    threads. Batches without changes pass: the first one is part of a pipeline's start, which isn't
    retried.
    """

    def plan(call: Call) -> Fault | None:
        if call.method not in methods or (call.method == "write_events" and not call.row_count):
            return None
        rng = random.Random(f"{seed} {call.method} {call.number}")
        delayed = Delay(rng.uniform(0, longest_delay_s))
        faults: list[Fault | None] = [Refuse(), LoseAnswer(), delayed, Hang(), None]
        chances = [refuse, lose_answer, delay, hang]
        [chosen] = rng.choices(faults, [*chances, max(1 - sum(chances), 0)])
        return chosen

    return plan


class FaultyDestination:
    """Passes calls on to another destination, except those that have a fault.

    >>> from etl_dagster.destinations.memory import MemoryDestination
    >>> from etl_dagster.testing.changes import ORDERS
    >>> destination = FaultyDestination(MemoryDestination())
    >>> destination.fail_next("drop_table_for_copy", Refuse())
    >>> destination.drop_table_for_copy(ORDERS)
    Traceback (most recent call last):
    etl_dagster.errors.DestinationUnreachable: drop_table_for_copy is refused by a planned fault
    >>> destination.drop_table_for_copy(ORDERS)
    >>> [str(call.method) for call, fault in destination.faults] == ["drop_table_for_copy"]
    True

    It offers and declares what the other one does, and can be interrupted.

    Args:
        inner: a destination that is not yet started. Start it, write to it and shut it down through
            this object only.
        plan: chooses faults for the calls that `fail_next` leaves alone.
    """

    def __init__(self, inner: Destination, plan: Plan | None = None) -> None:
        self.inner = inner
        #: The calls that had a fault, in the order in which they came.
        self.faults: list[tuple[Call, Fault]] = []
        self._plan = plan
        self._lock = threading.Lock()
        self._numbers: dict[Method, int] = {}
        self._next: dict[Method, list[Fault | None]] = {}
        # Plain numbers and flags, as `interrupt` may come from a signal handler: no lock there.
        self._releases = 0
        self._is_ended = False

    # -- faults --------------------------------------------------------------------------------

    def fail_next(self, method: Method, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Let `after` calls of a method pass, then give the fault to the next `times` of them."""
        with self._lock:
            self._next.setdefault(method, []).extend([*[None] * after, *[fault] * times])

    def release(self) -> None:
        """Let the calls that hang now continue."""
        self._releases += 1

    def _fault(self, method: Method, schemas: Sequence[TableSchema] = ()) -> Fault | None:
        return self._choose(method, frozenset(schema.id for schema in schemas), 0)

    def _choose(
        self, method: Method, table_ids: frozenset[TableId], row_count: int
    ) -> Fault | None:
        with self._lock:
            number = self._numbers.get(method, 0)
            self._numbers[method] = number + 1
            call = Call(method, number, table_ids, row_count)
            if told := self._next.get(method):
                fault = told.pop(0)
            else:
                fault = None if self._plan is None else self._plan(call)
            releases = self._releases
            if fault is not None:
                self.faults.append((call, fault))
        match fault:
            case Refuse(error):
                raise error or DestinationUnreachable(f"{method} is refused by a planned fault")
            case Delay(seconds):
                self._wait(time.monotonic() + seconds, releases)
            case Hang():
                self._wait(None, releases)
                if self._is_ended:
                    raise DestinationUnreachable(f"{method} hung by a planned fault until the end")
        return fault

    def _wait(self, until: float | None, releases: int) -> None:
        while not self._is_ended and self._releases == releases:
            left = _POLL_S if until is None else until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL_S))

    # -- the contract --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        declared = self.inner.capabilities
        if declared.offers is None:
            return declared
        return replace(declared, offers=declared.offers | {Interruptible})

    def __getattr__(self, name: str) -> Any:
        # `inner` is missing where a copy of the object is made; the other two where `inner` doesn't
        # take many copies at once.
        if name in ("inner", "drop_tables_for_copy", "write_whole_tables"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def startup(self, store: DestinationStore) -> None:
        fault = self._fault("startup")
        self.inner.startup(store)
        _lose("startup", fault, None)

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        fault = self._fault("drop_table_for_copy", [schema])
        self.inner.drop_table_for_copy(schema)
        _lose("drop_table_for_copy", fault, None)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:
        fault = self._fault("write_table_rows", [schema])
        return _lose("write_table_rows", fault, self.inner.write_table_rows(schema, rows))

    def write_events(self, events: EventBatch) -> WriteResult:
        fault = self._choose("write_events", frozenset(events.tables), events.row_count)
        return _lose("write_events", fault, self.inner.write_events(events))

    def shutdown(self) -> None:
        self._is_ended = True
        self.inner.shutdown()

    def interrupt(self) -> None:
        self._is_ended = True
        if interruptible := offered(self.inner, Interruptible):
            interruptible.interrupt()

    # -- many copies at once: properties, so that they are missing where `inner` has none --------

    @property
    def drop_tables_for_copy(self) -> Callable[[Sequence[TableSchema]], None]:
        many = copying_many(self.inner)
        if many is None:
            raise AttributeError("drop_tables_for_copy")

        def drop(schemas: Sequence[TableSchema]) -> None:
            fault = self._fault("drop_tables_for_copy", schemas)
            many.drop_tables_for_copy(schemas)
            _lose("drop_tables_for_copy", fault, None)

        return drop

    @property
    def write_whole_tables(
        self,
    ) -> Callable[[Sequence[tuple[TableSchema, TableRows]]], WriteResult]:
        many = copying_many(self.inner)
        if many is None:
            raise AttributeError("write_whole_tables")

        def write(copies: Sequence[tuple[TableSchema, TableRows]]) -> WriteResult:
            fault = self._fault("write_whole_tables", [schema for schema, _ in copies])
            return _lose("write_whole_tables", fault, many.write_whole_tables(copies))

        return write


def _lose(method: Method, fault: Fault | None, result: WriteResult) -> WriteResult:
    """The result of a call, or the error in its place once it is durable."""
    if not isinstance(fault, LoseAnswer):
        return result
    error = fault.error or DestinationUnreachable(f"{method} lost its answer by a planned fault")
    if result is None:
        raise error
    answer: Future[None] = Future()
    answer.set_running_or_notify_cancel()

    def lose(done: Future[None]) -> None:
        failure = None if done.cancelled() else done.exception()
        answer.set_exception(failure or error)

    result.add_done_callback(lose)
    return answer
