"""The least that a receiver must do so that no change is lost or doubled: keep a position for
each table, in one transaction with the rows, and skip what is not past it.

    python -m tests.support.small_receiver STATE [--port N]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_TABLES = """
pragma journal_mode = wal;
create table if not exists tables (
    id integer primary key, name text, copy_id text, replay_from text, position text);
create table if not exists rows (number integer primary key, id integer, key text, content text);
create index if not exists by_key on rows (id, key);
"""


class Outdated(Exception):
    """The body is of a copy that was given up for a newer one."""


def write_rows(db: sqlite3.Connection, body: dict[str, Any]) -> None:
    table, copy = body["table"], (body["copy_id"], position(body["replay_from"], -1))
    found = db.execute(
        "select copy_id, replay_from from tables where id = ?", [table["table_id"]]
    ).fetchone()
    if found != copy:
        if found and (found[1] or "") > copy[1]:
            raise Outdated
        # What is here is of an earlier copy; what the stream brings from before is in this one.
        db.execute("delete from rows where id = ?", [table["table_id"]])
        values = [table["table_id"], table["table"], *copy, copy[1]]
        db.execute("insert or replace into tables values (?, ?, ?, ?, ?)", values)
    columns = [column for column in table["columns"] if column["key"]]
    key = [column["name"] for column in sorted(columns, key=lambda column: column["key"])]
    for row in body["rows"]:
        put(db, table["table_id"], key, row)


# [deduplicate]
def write_events(db: sqlite3.Connection, events: list[dict[str, Any]]) -> None:
    for event in events:
        if "position" not in event:
            continue  # a relation, or the mark of a transaction
        here = position(**event["position"])
        last = db.execute("select position from tables where id = ?", [event["table_id"]])
        if here > (last.fetchone() or ("",))[0]:
            apply(db, event)
            values = [event["table_id"], event["table"], here]
            db.execute(
                "insert into tables (id, name, position) values (?, ?, ?)"
                " on conflict (id) do update set position = excluded.position",
                values,
            )


def position(commit_lsn: str, ordinal: int) -> str:
    """A text that sorts as positions do."""
    high, low = commit_lsn.split("/")
    return f"{high:0>8}{low:0>8}-{ordinal + 1:020}"


# [end]


def apply(db: sqlite3.Connection, event: dict[str, Any]) -> None:
    table_id, kind = event["table_id"], event["type"]
    if kind == "truncate":
        db.execute("delete from rows where id = ?", [table_id])
        return
    key, row = event["key"], event["row"]
    old = {} if kind == "insert" and not key else take(db, table_id, key, event["old_row"] or row)
    if kind != "delete":
        kept = {name: old.get(name) for name in event["unchanged"]}
        put(db, table_id, key, row | kept)


def put(db: sqlite3.Connection, table_id: int, key: list[str], row: dict[str, Any]) -> None:
    if key:
        take(db, table_id, key, row)
    values = [table_id, name_of(key, row), json.dumps(row, sort_keys=True)]
    db.execute("insert into rows (id, key, content) values (?, ?, ?)", values)


def take(
    db: sqlite3.Connection, table_id: int, key: list[str], row: dict[str, Any]
) -> dict[str, Any]:
    """Remove one row with this key, or with all these values; what it was."""
    found = db.execute(
        "delete from rows where number in"
        " (select number from rows where id = ? and key = ? limit 1) returning content",
        [table_id, name_of(key, row)],
    ).fetchall()
    content: dict[str, Any] = json.loads(found[0][0]) if found else {}
    return content


def name_of(key: list[str], row: dict[str, Any]) -> str:
    return json.dumps([row.get(name) for name in (key or sorted(row))])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    db: sqlite3.Connection
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            with self.lock, self.db:  # one transaction for the rows and the position
                self.db.execute("begin immediate")
                if self.path == "/rows":
                    write_rows(self.db, body)
                elif self.path == "/events":
                    write_events(self.db, body["events"])
        except Outdated:
            self.answer(b"{}", status=410)
            return
        self.answer(b"{}")

    def do_GET(self) -> None:
        """``/rows?table=public.orders``: what is there, for a comparison."""
        name = parse_qs(urlsplit(self.path).query)["table"][0]
        with self.lock:
            found = self.db.execute(
                "select content from rows join tables using (id) where name = ?", [name]
            ).fetchall()
        self.answer(json.dumps([json.loads(content) for (content,) in found]).encode())

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def make_server(
    state: Path, port: int = 0, handler: type[Handler] = Handler
) -> ThreadingHTTPServer:
    Handler.db = sqlite3.connect(state, isolation_level=None, check_same_thread=False)
    Handler.db.executescript(_TABLES)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server


@contextmanager
def serving(state: Path) -> Iterator[str]:
    """The URL of a server in this process; one at a time."""
    with make_server(state) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def main(handler: type[Handler] = Handler) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    server = make_server(options.state, options.port, handler)
    print("listening", server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
