"""A slot that makes the source keep much WAL is warned about before the server gives it up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.source.retained_wal import RetainedWal, warned_above
from etl_dagster.source.slots import Slot
from tests.support.scripted import config

GB = 1024**3
SLOT = Slot("s", "pgoutput", "d", True, 1, "reserved", Lsn(1), Lsn(1), 0)


@pytest.mark.parametrize(
    ("limit", "above"), [(None, 4 * GB), (10 * GB, 4 * GB), (4 * GB, 2 * GB), (2 * GB, GB)]
)
def test_the_warning_always_comes_before_the_servers_limit(limit: int | None, above: int) -> None:
    assert warned_above(4 * GB, limit) == above


def test_what_is_kept_is_compared_with_the_setting() -> None:
    source = config().source
    assert source.max_retained_wal == GB
    assert not RetainedWal.of(replace(SLOT, retained_bytes=GB), source).is_too_much
    much = RetainedWal.of(replace(SLOT, retained_bytes=GB + 1), source)
    assert much.is_too_much
    assert "more than source.max_retained_wal (1.0 GiB)" in much.reason
    assert "until the disk is full" in much.reason

    limited = replace(SLOT, retained_bytes=2 * GB, wal_limit_bytes=3 * GB)
    assert "past max_slot_wal_keep_size (3.0 GiB) the slot is lost" in (
        RetainedWal.of(limited, source).reason
    )
