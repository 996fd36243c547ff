"""A pipeline into a destination of dlt, in a process of its own, so that a test can kill it.

The first line of stdin is its configuration as JSON.
"""

from __future__ import annotations

import json
import logging
import sys

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import parse_config
from etl_dagster.runtime.pipeline import Pipeline


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    config = parse_config(json.loads(sys.stdin.readline()), {})
    pipeline = Pipeline(config, build_store(config), build_destination(config))
    pipeline.start()
    pipeline.wait()
