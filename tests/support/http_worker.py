"""A pipeline in a process of its own, so that a test can kill it.

The first line of stdin is a task: ``{"config": {...}, "kind": "http", "settings": {"url": ...}}``.
With ``"kind": "forty_lines"`` it is one written in forty lines; with ``"kind":
"configured"`` the one that the configuration names.
"""

from __future__ import annotations

import json
import logging
import sys

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import parse_config
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.model.destination import Destination
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.forty_lines import MyHttpDestination


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    task = json.loads(sys.stdin.readline())
    config = parse_config(task["config"], {})
    destination: Destination
    if task["kind"] == "http":
        destination = HttpDestination(pipeline=config.pipeline, **task["settings"])
    elif task["kind"] == "configured":
        destination = build_destination(config)
    else:
        destination = MyHttpDestination(**task["settings"])
    pipeline = Pipeline(config, build_store(config), destination)
    pipeline.start()
    pipeline.wait()
