"""A Meltano project with a tap and a target of its own, both real programs on a pipe.

The tap has the streams ``apples`` and ``pears``, whose rows are numbered; it continues after the
number in its state. While the file named by ``FRUIT_GATE`` is missing, it waits after its first
record, having written ``FRUIT_GATE`` with ``.reached`` behind it. ``FRUIT_ROWS`` is how many rows
there are, ``FRUIT_FAILS`` makes it fail at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

_TAP = """
import argparse, json, os, sys, time

parser = argparse.ArgumentParser()
for option in ("--config", "--state", "--catalog"):
    parser.add_argument(option)
parser.add_argument("--discover", action="store_true")
arguments = parser.parse_args()
STREAMS = ("apples", "pears")


def say(**message):
    print(json.dumps(message), flush=True)


def schema(stream):
    picked_at = {"type": ["null", "string"], "format": "date-time"}
    return {"type": "object", "properties": {"id": {"type": "integer"}, "picked_at": picked_at}}


if arguments.discover:
    with open(os.environ["FRUIT_LOG"], "a") as log:
        log.write("discovered\\n")
    say(streams=[{
        "tap_stream_id": stream, "stream": stream, "schema": schema(stream),
        "key_properties": ["id"], "replication_key": "id", "replication_method": "INCREMENTAL",
        "metadata": [{"breadcrumb": [], "metadata": {"inclusion": "available"}}],
    } for stream in STREAMS])
    sys.exit()

with open(arguments.catalog) as file:
    catalog = json.load(file)
chosen = [entry["stream"] for entry in catalog["streams"]
          if entry.get("selected") or any(
              not item["breadcrumb"] and item["metadata"].get("selected")
              for item in entry["metadata"])]
state = {}
if arguments.state:
    with open(arguments.state) as file:
        state = json.load(file)
bookmarks = state.get("bookmarks", {})
for stream in chosen:
    say(type="SCHEMA", stream=stream, schema=schema(stream), key_properties=["id"])
    first = bookmarks.get(stream, {}).get("id", 0) + 1
    count = 0
    for number in range(first, int(os.environ.get("FRUIT_ROWS", "3")) + 1):
        say(type="RECORD", stream=stream, record={"id": number, "picked_at": None})
        count += 1
        gate = os.environ.get("FRUIT_GATE")
        if gate and not os.path.exists(gate):
            with open(gate + ".reached", "w"):
                pass
            while not os.path.exists(gate):
                time.sleep(0.02)
        bookmarks = bookmarks | {stream: {"id": number}}
    metric = {"type": "counter", "metric": "record_count", "value": count,
              "tags": {"endpoint": stream}}
    print("INFO METRIC: " + json.dumps(metric), file=sys.stderr, flush=True)
    say(type="STATE", value={"bookmarks": bookmarks})
if os.environ.get("FRUIT_FAILS"):
    print("CRITICAL the orchard is closed", file=sys.stderr, flush=True)
    sys.exit(3)
"""

_TARGET = """
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "STATE":
        print(json.dumps(message["value"]), flush=True)
"""


def write_program(path: Path, source: str) -> None:
    """A program that this interpreter runs. Its own path may hold a space, at which a first line
    that named it would end."""
    path.with_name(f"{path.name}.py").write_text(source)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$0.py" "$@"\n')
    path.chmod(0o755)


def write_project(folder: Path) -> Path:
    """The project ``tap-fruit target-basket``; its folder."""
    project = folder / "orchard"
    project.mkdir()
    for name, source in (("tap-fruit", _TAP), ("target-basket", _TARGET)):
        write_program(project / name, source)
    (project / "meltano.yml").write_text(
        yaml.safe_dump(
            {
                "default_environment": "dev",
                "project_id": "1c2f0c4e-7a77-4a6c-8a53-4f1b2b0b5a11",
                "send_anonymous_usage_stats": False,
                "environments": [{"name": "dev"}],
                "plugins": {
                    "extractors": [
                        {
                            "name": "tap-fruit",
                            "namespace": "tap_fruit",
                            "executable": str(project / "tap-fruit"),
                            "capabilities": ["catalog", "discover", "state"],
                        }
                    ],
                    "loaders": [
                        {
                            "name": "target-basket",
                            "namespace": "target_basket",
                            "executable": str(project / "target-basket"),
                        }
                    ],
                },
            }
        )
    )
    return project
