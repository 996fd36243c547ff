"""Writes batches to a DuckDB file in a process of its own, so that a test can kill it.

``duckdb_writer FILE BATCHES``: the pickled batches, from the first; each one's number is printed
once it is durable.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.stores.memory import MemoryStore


def main() -> None:
    destination = DuckDBDestination(Path(sys.argv[1]), changelog=True)
    destination.startup(MemoryStore())
    for number, events in enumerate(pickle.loads(Path(sys.argv[2]).read_bytes())):
        destination.write_events(events)
        print(number, flush=True)
    destination.shutdown()
