"""Which destinations the shared slot keeps WAL for."""

from __future__ import annotations

from typing import Any

import pytest

from etl_dagster.config import parse_config
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.pacing import PACE
from etl_dagster.runtime.fan_out.shared import SharedSlot
from etl_dagster.runtime.fan_out.tee import Tee
from etl_dagster.runtime.memory import MemoryBudget

NOTHING = (0, memoryview(b""))


@pytest.fixture
def shared() -> SharedSlot:
    """One whose connection has begun to stream."""
    source: Any = {"dsn": "postgresql://u@127.0.0.1:1/d", "publication": "p"}
    places = {name: {"type": "memory"} for name in ("left", "right")}
    values = {"pipeline": "shop", "source": source, "destinations": places}
    made = SharedSlot(parse_config(values, {}), None, PACE, MemoryBudget(2**40))  # type: ignore[arg-type]
    made._tee = Tee(Lsn(100), buffer_bytes=4000, changed=made._changed)
    made._is_started = True
    return made


def test_a_late_write_of_a_destination_set_aside_retains_nothing(shared: SharedSlot) -> None:
    """It hung in a write, which is durable only after the destination got a slot of its own."""
    tee = shared._tee
    assert tee is not None
    left = shared.join_ahead("left")
    tee.drain(lambda: NOTHING)
    assert left.take_over()
    left.confirm(Lsn(200))
    assert shared.pinned() == {"left": Lsn(200)}

    shared.leave("left")
    left.confirm(Lsn(300))

    assert shared.pinned() == {}


def test_a_place_that_an_earlier_pipeline_requested_retains_nothing(shared: SharedSlot) -> None:
    """It failed on its return, and the next one reads its own slot."""
    tee = shared._tee
    assert tee is not None
    left = shared.join_ahead("left")
    shared.leave("left")

    tee.drain(lambda: NOTHING)

    assert left.is_lost
    assert shared.pinned() == {}
