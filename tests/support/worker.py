"""A worker in a process of its own, so that a test can kill it.

The first line of stdin is a task: ``{"config": {...}}`` runs the pipeline with its copies
elsewhere, ``{"config": {...}, "table_id": 16384}`` one table sync worker, with ``"shard"`` that
of one shard. One with several
destinations runs with its copies, without long pauses; with ``"ends_at": "after shared:copy_slot"``
until it comes to this step, where it kills itself. A pipeline with ``"copies": "own"`` copies, too;
one that ``"is_quick"`` looks often for tables.
"""

from __future__ import annotations

import json
import logging
import os
import pkgutil
import signal
import sys
from dataclasses import replace
from typing import Any

from etl_dagster.assembly import build_destination, build_store, opened_members, opened_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import EtlError
from etl_dagster.runtime.copying.table_sync import TableSync
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.timing import TIMING
from tests.support.fan_outs import QUICK


def main() -> None:
    run(json.loads(sys.stdin.readline()))


def run(task: dict[str, Any]) -> None:
    """Do the task until it ends or the process does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    # A line for every request would drown the rest.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = parse_config(task["config"], {})
    if "shard" in task:
        config = config.members()[task["shard"]]
    if config.destinations:
        if task.get("ends_at"):
            _end_at(*task["ends_at"].split())
        _fan_out(config)
        return
    store, destination = build_store(config), build_destination(config)
    try:
        if "table_id" in task:
            destination.startup(store)
            TableSync(config, store, destination, task["table_id"]).run()
        else:
            pipeline = Pipeline(
                config,
                store,
                destination,
                copies=task.get("copies", "elsewhere"),
                timing=replace(TIMING, membership_s=0.5) if task.get("is_quick") else TIMING,
            )
            pipeline.start()
            pipeline.wait()  # shuts the destination down
    except EtlError as error:
        logging.exception("ended")
        sys.exit(f"{type(error).__name__}: {error.reason}")
    finally:
        destination.shutdown()
        store.close()


def _fan_out(config: PipelineConfig) -> None:
    with opened_store(config) as store, opened_members(config) as parts:
        fan_out = FanOut(config, store, parts, pace=replace(QUICK, standstill_s=3.0))
        try:
            fan_out.start()
            fan_out.wait()
        except EtlError as error:
            logging.exception("ended")
            sys.exit(f"{type(error).__name__}: {error.reason}")


def _end_at(when: str, place: str) -> None:
    """Have this process killed when it first comes to a function.

    Args:
        when: before or after the function is run.
        place: such as ``shared:copy_slot``, a name in a module of `runtime.fan_out`.
    """
    owner_name, _, name = place.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(f"etl_dagster.runtime.fan_out.{owner_name.replace('.', ':', 1)}")
    function = getattr(owner, name)

    def end(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            function(*args, **kwargs)
        logging.info("ends %s %s", when, place)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, end)
