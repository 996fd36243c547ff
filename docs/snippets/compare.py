"""Makes the tables of what was received, and compares them with the source."""

import json
import os
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import psycopg

tables: dict[str, dict[tuple, dict]] = defaultdict(dict)
seen: dict[str, set] = defaultdict(set)


def key(row: dict, columns: list[str]) -> tuple:
    return tuple(row[name] for name in columns)


def apply(event: dict) -> None:
    """One change. Delivery is at least once: a position that was seen before is skipped."""
    position = tuple(event["position"].values())
    if position in seen[event["table"]]:
        return
    seen[event["table"]].add(position)
    table = tables[event["table"]]
    if event["type"] == "truncate":
        table.clear()
        return
    before = table.pop(key(event["old_row"] or event["row"], event["key"]), {})
    if event["type"] != "delete":
        table[key(event["row"], event["key"])] = before | event["row"]


for line in Path("received.jsonl").read_text().splitlines():
    request = json.loads(line)
    path, body = request["path"], request["body"]
    if path == "/rows":
        tables[body["table"]] |= {key(row, body["key"]): row for row in body["rows"]}
    elif path == "/events":
        for event in body["events"]:
            if "position" in event:  # begin, commit and relation change no row
                apply(event)
    else:
        name = unquote(path.split("/")[2])  # /tables/{name}/drop-for-copy
        tables[name], seen[name] = {}, set()

with psycopg.connect(os.environ["ETL_SOURCE_DSN"]) as connection:
    rows = connection.execute("SELECT id::text, item, amount::text FROM orders").fetchall()
source = {(id,): {"id": id, "item": item, "amount": amount} for id, item, amount in rows}
received = tables["public.orders"]
print(f"{len(source)} rows in the source")
print(f"{len(source.keys() - received.keys())} missing")
print(f"{len(received.keys() - source.keys())} too many")
print(f"{sum(source[id] != received[id] for id in source.keys() & received.keys())} different")
