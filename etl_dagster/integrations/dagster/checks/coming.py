"""Tables that the next start of the pipeline will copy again, so that checks can warn of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.lag import LagVerdict
from etl_dagster.kinds import STORES

#: How often they are looked up, which opens the store and reads the source's catalog.
_EVERY_S = 60.0

Coming: TypeAlias = Mapping[str, str]


class _Known:
    """The last answer about one pipeline."""

    def __init__(self) -> None:
        #: Held while source and store are asked, which may take long; so each pipeline has its own.
        self.lock = threading.Lock()
        self.config: PipelineConfig | None = None
        #: Seconds of a monotonic clock.
        self.valid_until = float("-inf")
        self.answer: Coming = {}


#: By pipeline; belongs to the code server's process.
_known: defaultdict[str, _Known] = defaultdict(_Known)
_lock = threading.Lock()


def find_coming(config: PipelineConfig) -> Coming:
    """By table, why the next start copies it again and what that does; changes nothing.

    Empty where the source or the store can't be asked: the replicator reports that failure itself.
    """
    from etl_dagster.assembly import forgets, opened_store
    from etl_dagster.model.stores import KnowsPipeline
    from etl_dagster.runtime.tables.coming_copies import announced_copies
    from etl_dagster.source.control import SourceControl

    if forgets(STORES, config.state_store.type):
        return {}
    control = SourceControl(config.source, application_name="etl_dagster check")
    try:
        with contextlib.closing(control), opened_store(config) as store:
            if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
                return {}
            coming = announced_copies(config, store, control)
    except EtlError:
        return {}
    return {
        each.table: f"{each.reason}. With the next start, {each.consequence}" for each in coming
    }


def recently_found(
    config: PipelineConfig, find: Callable[[PipelineConfig], Coming] = find_coming
) -> Coming:
    """As `find_coming`, looked up once a minute."""
    with _lock:
        known = _known[config.pipeline]
    with known.lock:
        if known.config != config or time.monotonic() >= known.valid_until:
            known.answer = find(config)
            known.config, known.valid_until = config, time.monotonic() + _EVERY_S
        return known.answer


def announced(verdict: LagVerdict, coming: str | None) -> LagVerdict:
    """The verdict on a table, with what the next start does to it; that alone is a warning."""
    if coming is None:
        return verdict
    return replace(
        verdict,
        passed=False,
        kind=f"{verdict.kind}; {coming}",
        words=f"{verdict.words}\n\nSettings changed since the table was copied: {coming}.",
    )


def verdict(coming: str) -> LagVerdict:
    """The verdict on a table that the start of the pipeline now under way copies again."""
    words = f"Settings changed since the table was copied: {coming}."
    return LagVerdict(False, False, f"copied again; {coming}", words)
