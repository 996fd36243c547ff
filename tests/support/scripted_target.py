#!/usr/bin/env python3
"""A Singer target that keeps its tables in an SQLite file, and fails on request.

Its settings, all in the file given as ``--config``:

| setting | means |
|---|---|
| ``folder`` | where ``tables.sqlite`` is, and ``fault.json`` |
| ``hard_delete`` | rows with ``_sdc_deleted_at`` go, and older versions; else they are marked |
| ``merge`` | what a record leaves out stays as it is |
| ``states`` | ``newest`` as the SDK; ``by_stream`` as PipelineWise's; ``at_once``: none is kept |
| ``batch_size`` | records of a stream, after which it is written |

``fault.json`` is a list of faults of which each start takes the first: ``do`` (``exit``, ``hang``,
``ignore_input``, ``close_stdout``, ``garbage``, ``keep_state``, ``half_then_exit``) and when:
``at`` records, or at one of ``stream``, or else at the end of its input. ``always`` leaves the
fault in the file. ``says`` goes to stderr before. What ``--about`` says of its capabilities is in
the environment, as SCRIPTED_CAPABILITIES.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
from typing import Any

_MADE = """
CREATE TABLE IF NOT EXISTS streams (stream TEXT PRIMARY KEY, schema TEXT, keys TEXT);
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY, stream TEXT, key TEXT, record TEXT, version INTEGER,
    UNIQUE (stream, key)
);
CREATE TABLE IF NOT EXISTS received (stream TEXT, record TEXT);
CREATE TABLE IF NOT EXISTS starts (pid INTEGER);
"""


class Target:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.folder = settings["folder"]
        path = os.path.join(self.folder, "tables.sqlite")
        self.file = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.file.execute("PRAGMA synchronous = OFF")
        self.file.executescript(_MADE)
        self.file.execute("INSERT INTO starts VALUES (?)", [os.getpid()])
        self.fault = self.take_fault()
        self.schemas: dict[str, Any] = {}
        self.waiting: dict[str, list[dict[str, Any]]] = {}
        self.state: Any = None
        self.flushed: Any = None
        self.count = 0

    def take_fault(self) -> dict[str, Any]:
        path = os.path.join(self.folder, "fault.json")
        try:
            with open(path) as file:
                found = json.load(file)
        except FileNotFoundError:
            return {}
        faults = found if isinstance(found, list) else [found]
        if not faults:
            return {}
        if not faults[0].get("always"):
            with open(path, "w") as file:
                json.dump(faults[1:], file)
        return faults[0]

    def listen(self) -> None:
        if self.fault.get("do") == "ignore_input":
            self.hang()
        for line in sys.stdin.buffer:
            self.take(json.loads(line))
        if "at" not in self.fault and not self.fault.get("stream"):
            self.fail_when_told()
        self.write_all()
        if self.fault.get("do") != "keep_state":
            self.say(self.state if self.states != "by_stream" else self.flushed)

    @property
    def states(self) -> str:
        return self.settings.get("states", "newest")

    def take(self, message: dict[str, Any]) -> None:
        kind, stream = message["type"], message.get("stream")
        if kind == "SCHEMA":
            self.schemas[stream] = message
            self.write(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)",
                stream,
                json.dumps(message["schema"]),
                json.dumps(message["key_properties"]),
            )
        elif kind == "RECORD":
            assert stream in self.schemas, "a RECORD came before its SCHEMA"
            self.count += 1
            self.write("INSERT INTO received VALUES (?, ?)", stream, json.dumps(message))
            self.waiting.setdefault(stream, []).append(message)
            if self.fault.get("at") == self.count or self.fault.get("stream") == stream:
                self.fail_when_told()
            if len(self.waiting[stream]) >= self.settings.get("batch_size", 1_000_000):
                self.write_stream(stream)
                self.say(self.flushed if self.states == "by_stream" else None)
        elif kind == "STATE":
            self.state = message["value"]
            if self.flushed is None:
                self.flushed = json.loads(json.dumps(self.state))
            if self.states == "at_once":
                self.write_all()
                self.say(self.state)
        elif kind == "ACTIVATE_VERSION":
            self.write_stream(stream)
            self.remove_older(stream, message["version"])

    def remove_older(self, stream: str, version: int) -> None:
        if self.settings.get("hard_delete", True):
            self.write("DELETE FROM rows WHERE stream = ? AND version < ?", stream, version)
            return
        found = "SELECT number, record FROM rows WHERE stream = ? AND version < ?"
        for number, text in self.file.execute(found, [stream, version]).fetchall():
            record = json.loads(text)
            if record["_sdc_deleted_at"] is None:
                record["_sdc_deleted_at"] = "2026-01-01T00:00:00+00:00"  # its own time
                self.write(
                    "UPDATE rows SET record = ? WHERE number = ?", json.dumps(record), number
                )

    def write_all(self) -> None:
        is_left = bool(self.waiting)
        for stream in list(self.waiting):
            self.write_stream(stream)
        if is_left:
            self.flushed = self.state

    def write_stream(self, stream: str) -> None:
        self.file.execute("BEGIN IMMEDIATE")
        for message in self.waiting.pop(stream, []):
            self.put(stream, message)
        self.file.execute("COMMIT")
        mine = ((self.state or {}).get("bookmarks") or {}).get(stream)
        if mine is not None:
            self.flushed["bookmarks"][stream] = mine

    def put(self, stream: str, message: dict[str, Any]) -> None:
        record, keys = message["record"], self.schemas[stream]["key_properties"]
        known = self.schemas[stream]["schema"]["properties"]
        assert record.keys() <= known.keys(), "a property is not in the schema"
        key = json.dumps([record[name] for name in keys]) if keys else None
        if record.get("_sdc_deleted_at") and self.settings.get("hard_delete", True):
            self.write("DELETE FROM rows WHERE stream = ? AND key = ?", stream, key)
            return
        if self.settings.get("merge"):
            found = self.file.execute(
                "SELECT record FROM rows WHERE stream = ? AND key = ?", [stream, key]
            ).fetchone()
            record = {**(json.loads(found[0]) if found else {}), **record}
        self.write(
            "INSERT OR REPLACE INTO rows (stream, key, record, version) VALUES (?, ?, ?, ?)",
            stream,
            key,
            json.dumps(record),
            message.get("version"),
        )

    def write(self, sql: str, *values: Any) -> None:
        self.file.execute(sql, values)

    def say(self, state: Any) -> None:
        if state is not None:
            print(json.dumps(state), flush=True)

    def fail_when_told(self) -> None:
        if "do" not in self.fault:
            return
        if says := self.fault.get("says"):
            print(says, file=sys.stderr, flush=True)
        do = self.fault["do"]
        if do == "half_then_exit":
            self.write_all()
        if do in ("exit", "half_then_exit"):
            os._exit(self.fault.get("code", 1))
        if do == "hang":
            self.hang()
        if do == "close_stdout":
            os.close(1)
        if do == "garbage":
            for text in ("not JSON", "[]", '{"bookmarks": 7}', '{"bookmarks": {"a": {}}}', "7"):
                print(text, flush=True)

    def hang(self) -> None:
        with open(os.path.join(self.folder, "hangs"), "w") as file:
            file.write(str(os.getpid()))
        while True:
            time.sleep(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--about", action="store_true")
    parser.add_argument("--format")
    arguments = parser.parse_args()
    if arguments.about:
        capabilities = os.environ.get("SCRIPTED_CAPABILITIES", "activate-version").split(",")
        settings = {"type": "object", "properties": {"folder": {}}}
        print(json.dumps({"version": "1.0", "capabilities": capabilities, "settings": settings}))
        return
    with open(arguments.config) as file:
        settings = json.load(file)
    Target(settings).listen()


if __name__ == "__main__":
    main()
