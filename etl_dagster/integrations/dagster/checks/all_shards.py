"""The checks of a pipeline in shards: the first shard's, which has its name, cover all shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks import lag
from etl_dagster.integrations.dagster.checks.pipeline_checks import judge_pipeline, judge_stopped
from etl_dagster.integrations.dagster.checks.slot_look import SlotLook, resource_look
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.thresholds import CheckThresholds

#: What each check found, by its name.
Found = Mapping[str, Finding]


def find_out(resource: EtlResource, thresholds: CheckThresholds) -> Found:
    """The outcome of each check now, whichever process runs the pipeline.

    What can't be examined fails its check, and not the run.
    """
    try:
        config = resource.load_config()
    except EtlError as error:
        return judge_stopped(lag.unknown(error))
    found = _find_out_alone(lambda: resource, thresholds)
    return with_other_shards(config, found, asking_shards(resource, thresholds))


def asking_shards(resource: EtlResource, thresholds: CheckThresholds) -> Callable[[str], Found]:
    """What the checks of another shard find now, by its name."""
    return lambda name: _find_out_alone(lambda: resource.of_shard(name), thresholds)


def _find_out_alone(get: Callable[[], EtlResource], thresholds: CheckThresholds) -> Found:
    try:
        resource = get()
        config = resource.load_config()
        seen = lag.published(resource)
    except EtlError as error:
        return judge_stopped(lag.unknown(error))
    stopped = seen.dead_verdict(config.pipeline)
    if seen.status is None:
        assert stopped is not None
        return judge_stopped(stopped)
    look: SlotLook | EtlError
    try:
        look = resource_look(resource)(config)
    except EtlError as error:
        look = error
    return judge_pipeline(seen.status, stopped, look, thresholds)


def with_other_shards(config: PipelineConfig, found: Found, ask: Callable[[str], Found]) -> Found:
    """What the checks found; for the first of several shards, the worst that any shard has found.

    Args:
        found: what they found for the shard of this configuration.
        ask: what the checks of another shard find now, by its name.
    """
    sharding = config.sharding
    if sharding is None or sharding.name != sharding.pipeline:
        return found
    by_shard = {sharding.name: found} | {name: ask(name) for name in sharding.others}
    return {
        check: _worst({name: each[check] for name, each in by_shard.items()}) for check in found
    }


def _worst(by_shard: Mapping[str, Finding]) -> Finding:
    """The finding that most needs attention; its text names every shard that doesn't pass."""
    first, *others = sorted(by_shard, key=lambda name: _need(by_shard[name]), reverse=True)
    worst = by_shard[first]
    failing = [name for name in others if not by_shard[name].passed]
    words = [f"Shard {first!r}: {worst.words}"]
    words += [f"Shard {name!r}: {by_shard[name].words}" for name in failing]
    if passing := len(by_shard) - len(failing) - (not worst.passed):
        behind = "; this one is the furthest behind" if _behind(worst) else ""
        words.append(
            f"All {passing} shards pass{behind}."
            if worst.passed
            else f"{passing} of {len(by_shard)} shards pass."
        )
    kinds = [f"{name}: {by_shard[name].kind}" for name in sorted([first, *failing])]
    return replace(
        worst,
        words="\n\n".join(words),
        facts={"shard": first, **worst.facts},
        kind=worst.kind if worst.passed else "; ".join(kinds),
    )


def _need(found: Finding) -> tuple[bool, bool, float]:
    return not found.passed, found.is_severe, _behind(found)


def _behind(found: Finding) -> float:
    """How far a shard is behind, in the unit of its check; 0 for checks that don't measure it."""
    measured = (found.facts.get(name) for name in ("lag_seconds", "retained_wal_bytes"))
    return next((float(each) for each in measured if each), 0.0)
