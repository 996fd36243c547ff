"""The check of bookmarks in a run: red while nothing streams; it waits for a state that is due."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import AssetKey

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.checks import bookmark_check, lag
from etl_dagster.integrations.dagster.checks.checked_now import check_bookmarks
from etl_dagster.integrations.meltano.positions.compared import BookmarkComparison
from etl_dagster.lsn import Lsn
from etl_dagster.runtime.showing.status import PipelineStatus

KEYS = {"public.orders": AssetKey("orders"), "public.people": AssetKey("people")}
CONFIG = PipelineConfig(
    pipeline="shop", source={"dsn": "postgresql://nowhere/shop", "publication": "etl_pub"}
)
RESOURCE: Any = SimpleNamespace(load_config=lambda: CONFIG)
IN_STEP = BookmarkComparison(True, False, "The bookmark is at 0/64.", Lsn(100), Lsn(100))
MISSING = BookmarkComparison(False, False, "There is no Meltano state yet.", has_state=False)


class Looks:
    """What each comparison finds, and the time that passes between them."""

    def __init__(self, *found: Mapping[str, BookmarkComparison]) -> None:
        self.found = list(found)
        self.now_s = 0.0

    def compare(self, *_: object) -> Mapping[str, BookmarkComparison]:
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def look(looks: Looks, *, is_running: bool) -> dict[str, bool]:
    status = PipelineStatus("shop", "duckdb", "streaming", at=time.time())
    published = lag.Published(status, is_running, {})
    found = bookmark_check.look(
        RESOURCE,
        KEYS,
        clock=lambda: looks.now_s,
        sleep=looks.sleep,
        published=lambda _: published,
        compare=looks.compare,
    )
    return {table: each.passed for table, each in found.items()}


def test_a_state_that_is_written_a_moment_later_is_waited_for() -> None:
    early = {"public.orders": IN_STEP, "public.people": MISSING}
    looks = Looks(early, early, dict.fromkeys(KEYS, IN_STEP))

    assert look(looks, is_running=True) == dict.fromkeys(KEYS, True)


def test_a_state_that_is_never_written_fails_its_check_only() -> None:
    looks = Looks({"public.orders": IN_STEP, "public.people": MISSING})

    found = look(looks, is_running=True)

    assert found == {"public.orders": True, "public.people": False}
    assert looks.now_s == pytest.approx(10.0, abs=1.0)


def test_nothing_passes_while_nothing_streams() -> None:
    """A position that doesn't move is in step with a slot that is not read."""
    looks = Looks(dict.fromkeys(KEYS, IN_STEP))

    assert look(looks, is_running=False) == dict.fromkeys(KEYS, False)


def test_a_configuration_that_cannot_be_read_fails_the_checks_and_not_the_run() -> None:
    def load_config() -> PipelineConfig:
        raise ConfigError(["SHOP_DSN is not set"])

    unreadable: Any = SimpleNamespace(load_config=load_config)

    results = list(check_bookmarks(unreadable, KEYS))

    assert [(each.asset_key, each.passed) for each in results] == [
        (key, False) for key in KEYS.values()
    ]
    assert "SHOP_DSN is not set" in str(results[0].description)
