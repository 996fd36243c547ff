"""Tables that the next start of the pipeline copies again, said before it does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.lag import LagVerdict
from etl_dagster.kinds import STORES

#: Asking opens the store and reads the source's catalog.
_EVERY_S = 60.0

#: By pipeline: the configuration that it was looked up for, until when it counts, and the answer.
_known: dict[str, tuple[PipelineConfig, float, Mapping[str, str]]] = {}
_lock = threading.Lock()


def find_coming(config: PipelineConfig) -> Mapping[str, str]:
    """By table, why it would be copied again and what becomes of it; changes nothing.

    Nothing where the source or the store can't be asked: the replicator fails with that, too.
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


def recently_found(config: PipelineConfig) -> Mapping[str, str]:
    """As `find_coming`, looked up once a minute."""
    now = time.monotonic()
    with _lock:
        known = _known.get(config.pipeline)
        if known is not None and known[0] == config and now < known[1]:
            return known[2]
        found = find_coming(config)
        _known[config.pipeline] = config, now + _EVERY_S, found
        return found


def announced(verdict: LagVerdict, coming: str | None) -> LagVerdict:
    """The verdict on a table, with what the next start makes of it; that alone is a warning."""
    if coming is None:
        return verdict
    return replace(
        verdict,
        passed=False,
        kind=f"{verdict.kind}; {coming}",
        words=f"{verdict.words}\n\nSettings changed since the table was copied: {coming}.",
    )


def verdict(coming: str) -> LagVerdict:
    """The verdict on a table of a pipeline that starts now."""
    words = f"Settings changed since the table was copied: {coming}."
    return LagVerdict(False, False, f"copied again; {coming}", words)
