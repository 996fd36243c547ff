"""Compares what was received with the source, value by value."""

import os
from pathlib import Path

import psycopg
from received import read_tables

with psycopg.connect(os.environ["ETL_SOURCE_DSN"]) as connection:
    rows = connection.execute("SELECT id::text, item, amount::text FROM orders").fetchall()
source = {id: {"id": id, "item": item, "amount": amount} for id, item, amount in rows}
table = read_tables(Path("received.jsonl"))["public.orders"]
received = {row["id"]: row for row in table.rows()}

print(f"{len(source)} rows in the source")
print(f"{len(source.keys() - received.keys())} missing")
print(f"{len(received.keys() - source.keys())} too many")
print(f"{sum(source[id] != received[id] for id in source.keys() & received.keys())} different")
