"""What a receiver of HTTP bodies keeps: the source's tables, in SQLite, each change applied once.

Every body is one transaction, together with its key and its positions, so a process that is killed
has either all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Position = tuple[int, int]

_TABLES = """
create table if not exists requests (key text primary key);
create table if not exists epochs (pipeline text primary key, epoch integer);
create table if not exists tables (
    id integer primary key, description text, position text, replay_from integer,
    copy_id text, is_complete integer default 0, named integer default 0);
create table if not exists ended_copies (id integer, copy_id text, primary key (id, copy_id));
create table if not exists chunks (
    id integer, copy_id text, chunk integer, attempt text, next_part integer, is_whole integer,
    primary key (id, copy_id, chunk));
create table if not exists rows (
    number integer primary key, id integer, copy_id text, chunk integer, key text, content text);
create index if not exists by_key on rows (id, copy_id, key);
create table if not exists changelog (
    number integer primary key, id integer, op text, lsn integer, ordinal integer);
"""
#: `rows.copy_id` of the table that readers see.
_LIVE = ""


class Refused(Exception):
    """The answer is this status, and nothing was changed."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class ReceiverState:
    """Applies bodies, and lets look at the result; safe for several threads."""

    def __init__(self, path: Path | str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # What the operating system has is safe from a kill of the process.
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = off")
        self._db.executescript(_TABLES)

    def apply(self, key: str, body: Json, before_commit: Callable[[], None]) -> bool:
        """Whether the body was new.

        Raises:
            Refused: it can't be taken.
        """
        with self._transaction(before_commit) as db:
            if db.execute("select 1 from requests where key = ?", [key]).fetchone():
                return False
            match body["kind"]:
                case "drop-for-copy":
                    self._drop(body["table"]["table_id"])
                case "rows" if body["end_of_copy"]:
                    self._end_copy(body)
                case "rows":
                    self._add_part(body)
                case "events":
                    self._write_events(body)
            db.execute("insert into requests values (?)", [key])
            return True

    def forget(self) -> None:
        """Begin again with nothing."""
        tables = ("requests", "epochs", "tables", "ended_copies", "chunks", "rows", "changelog")
        with self._lock:
            self._db.executescript("".join(f"delete from {table};" for table in tables))

    # -- looking -----------------------------------------------------------------------------

    def rows(self, table_name: str) -> list[Json] | None:
        """The rows in JSON's values; None when there is no such table."""
        with self._lock:
            # The last table that got a name has it: that it left another may be heard later.
            for table_id, text in self._db.execute(
                "select id, description from tables order by named desc"
            ):
                if text is not None and json.loads(text)["table"] == table_name:
                    found = self._db.execute(
                        "select content from rows where id = ? and copy_id = ? order by number",
                        [table_id, _LIVE],
                    )
                    return [json.loads(content) for (content,) in found]
        return None

    def changelog(self) -> list[list[Any]]:
        with self._lock:
            found = self._db.execute(
                "select id, op, lsn, ordinal from changelog order by lsn, ordinal, number"
            )
            return [list(row) for row in found]

    # -- the copy ----------------------------------------------------------------------------

    def _drop(self, table_id: int) -> None:
        copy_id, _ = self._copy(table_id)
        if copy_id is not None:
            self._end(table_id, copy_id)
        self._set(table_id, copy_id=None, is_complete=0, position=None)

    def _add_part(self, body: Json) -> None:
        table, copy_id, chunk = body["table"], body["copy_id"], body["chunk"]
        place = [table["table_id"], copy_id, chunk]
        if self._is_complete(table["table_id"], copy_id):
            return
        found = self._db.execute(
            "select attempt, next_part, is_whole from chunks"
            " where id = ? and copy_id = ? and chunk = ?",
            place,
        ).fetchone()
        attempt, expected, is_whole = found or ("", 0, 0)
        if is_whole:
            return
        if body["part"] == 0:
            self._db.execute("delete from rows where id = ? and copy_id = ? and chunk = ?", place)
        elif (attempt, expected) != (body["attempt"], body["part"]):
            raise Refused(409, "parts come in order")
        self._db.execute(
            "insert or replace into chunks values (?, ?, ?, ?, ?, ?)",
            [*place, body["attempt"], body["part"] + 1, body["is_last_part"]],
        )
        key_columns = _key_columns(table)
        self._db.executemany(
            "insert into rows (id, copy_id, chunk, key, content) values (?, ?, ?, ?, ?)",
            ([*place, _key(key_columns, row), _text(row)] for row in body["rows"]),
        )

    def _end_copy(self, body: Json) -> None:
        table, copy_id = body["table"], body["copy_id"]
        table_id = table["table_id"]
        if self._is_complete(table_id, copy_id):
            return
        broken = "select 1 from chunks where id = ? and copy_id = ? and not is_whole"
        if self._db.execute(broken, [table_id, copy_id]).fetchone():
            raise Refused(422, "a chunk is not whole")
        self._db.execute("delete from rows where id = ? and copy_id = ?", [table_id, _LIVE])
        if _key_columns(table):  # a row that moved between two chunks
            self._db.execute(
                "delete from rows where id = ?1 and copy_id = ?2 and number not in"
                " (select max(number) from rows where id = ?1 and copy_id = ?2 group by key)",
                [table_id, copy_id],
            )
        self._db.execute(
            "update rows set copy_id = ? where id = ? and copy_id = ?", [_LIVE, table_id, copy_id]
        )
        replay_from = _lsn(body["replay_from"])
        self._set(
            table_id,
            description=json.dumps(table),
            is_complete=1,
            replay_from=replay_from,
            position=json.dumps([replay_from - 1, 2**62]),
        )
        self._name(table_id)

    def _is_complete(self, table_id: int, copy_id: str) -> bool:
        """Whether this copy is at its end; one never heard of begins now."""
        current, is_complete = self._copy(table_id)
        if current == copy_id:
            return is_complete
        ended = "select 1 from ended_copies where id = ? and copy_id = ?"
        if self._db.execute(ended, [table_id, copy_id]).fetchone():
            raise Refused(410, "a newer copy has begun")
        if current is not None:
            self._end(table_id, current)
        self._set(table_id, copy_id=copy_id, is_complete=0)
        return False

    def _copy(self, table_id: int) -> tuple[str | None, bool]:
        found = self._db.execute("select copy_id, is_complete from tables where id = ?", [table_id])
        copy_id, is_complete = found.fetchone() or (None, 0)
        return copy_id, bool(is_complete)

    def _end(self, table_id: int, copy_id: str) -> None:
        self._db.execute("insert or ignore into ended_copies values (?, ?)", [table_id, copy_id])
        self._db.execute("delete from rows where id = ? and copy_id = ?", [table_id, copy_id])

    # -- the stream --------------------------------------------------------------------------

    def _write_events(self, body: Json) -> None:
        self._check_epoch(body["pipeline"], body["epoch"])
        table = body["table"]
        table_id = table["table_id"]
        position, replay_from = self._position(table_id)
        apply_from = body["apply_from"]
        if apply_from is not None and replay_from is not None and _lsn(apply_from) < replay_from:
            return
        relation: Json | None = None
        for event in body["events"]:
            if event["type"] == "relation":
                relation = event
                continue
            place = _position(event)
            if place > position:
                self._evolve(table)
                self._apply(table, event)
                position = place
                self._set(table_id, position=json.dumps(place))
            relation = None
        if relation is not None and _lsn(table["snapshot_id"]) >= self._snapshot(table_id):
            self._evolve(table)

    def _apply(self, table: Json, event: Json) -> None:
        table_id, op = table["table_id"], event["type"]
        lsn, ordinal = _position(event)
        self._db.execute(
            "insert into changelog (id, op, lsn, ordinal) values (?, ?, ?, ?)",
            [table_id, op[0].upper(), lsn, ordinal],
        )
        if op == "truncate":
            self._db.execute("delete from rows where id = ? and copy_id = ?", [table_id, _LIVE])
            return
        key, row = event["key"], event["row"]
        if op == "delete":
            self._take(table_id, _key(key, row))
            return
        before: Json = {}
        if op == "update" and (key or event["old_row"]):
            before = self._take(table_id, _key(key, event["old_row"] or row)) or {}
        after = {name: before.get(name) for name in event["unchanged"]} | row
        if key:
            self._take(table_id, _key(key, after))
        self._db.execute(
            "insert into rows (id, copy_id, key, content) values (?, ?, ?, ?)",
            [table_id, _LIVE, _key(key, after), _text(after)],
        )

    def _take(self, table_id: int, key: str) -> Json | None:
        """Remove the row with this key, of several one, and return it."""
        found = self._db.execute(
            "select number, content from rows where id = ? and copy_id = ? and key = ? limit 1",
            [table_id, _LIVE, key],
        ).fetchone()
        if found is None:
            return None
        self._db.execute("delete from rows where number = ?", [found[0]])
        row: Json = json.loads(found[1])
        return row

    def _evolve(self, table: Json) -> None:
        """Have the table's rows fit its description: columns are the same by their attnum."""
        table_id = table["table_id"]
        description = self._description(table_id)
        if description == table:
            return
        self._set(table_id, description=json.dumps(table))
        if description is None or description["table"] != table["table"]:
            self._name(table_id)
        if description is None or description["columns"] == table["columns"]:
            return
        old_names = {c["attnum"]: c["name"] for c in description["columns"]}
        sources = [(c, old_names.get(c["attnum"])) for c in table["columns"]]
        key_columns = _key_columns(table)
        rows = self._db.execute(
            "select number, content from rows where id = ? and copy_id = ?", [table_id, _LIVE]
        ).fetchall()
        for number, content in rows:
            old = json.loads(content)
            row = {c["name"]: _retyped(c, old.get(source)) for c, source in sources}
            self._db.execute(
                "update rows set key = ?, content = ? where number = ?",
                [_key(key_columns, row), _text(row), number],
            )

    def _name(self, table_id: int) -> None:
        self._db.execute(
            "update tables set named = (select max(named) + 1 from tables) where id = ?", [table_id]
        )

    def _check_epoch(self, pipeline: str, epoch: int) -> None:
        if not epoch:
            return
        found = self._db.execute("select epoch from epochs where pipeline = ?", [pipeline])
        if (found.fetchone() or (0,))[0] > epoch:
            raise Refused(412, "a newer sender was here")
        self._db.execute("insert or replace into epochs values (?, ?)", [pipeline, epoch])

    # -- tables ------------------------------------------------------------------------------

    def _position(self, table_id: int) -> tuple[Position, int | None]:
        found = self._db.execute(
            "select position, replay_from from tables where id = ?", [table_id]
        )
        text, replay_from = found.fetchone() or (None, None)
        lsn, ordinal = json.loads(text) if text else (0, -1)
        return (lsn, ordinal), replay_from

    def _description(self, table_id: int) -> Json | None:
        found = self._db.execute("select description from tables where id = ?", [table_id])
        (text,) = found.fetchone() or (None,)
        return json.loads(text) if text else None

    def _snapshot(self, table_id: int) -> int:
        description = self._description(table_id)
        return _lsn(description["snapshot_id"]) if description else 0

    def _set(self, table_id: int, **values: Any) -> None:
        self._db.execute("insert or ignore into tables (id) values (?)", [table_id])
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"update tables set {assignments} where id = ?", [*values.values(), table_id]
        )

    @contextmanager
    def _transaction(self, before_commit: Callable[[], None]) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
                before_commit()
                self._db.execute("commit")
            except BaseException:
                self._db.execute("rollback")
                raise


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def _position(event: Json) -> Position:
    return _lsn(event["position"]["commit_lsn"]), event["position"]["ordinal"]


def _key_columns(table: Json) -> list[str]:
    keyed = [column for column in table["columns"] if column["key"] is not None]
    return [column["name"] for column in sorted(keyed, key=lambda column: column["key"])]


def _key(key_columns: list[str], row: Json) -> str:
    """What a row is found by: its key, or all of it."""
    if key_columns:
        return json.dumps([row.get(name) for name in key_columns])
    return hashlib.sha1(_text(row).encode()).hexdigest()


def _text(row: Json) -> str:
    return json.dumps(row, sort_keys=True)


def _retyped(column: Json, value: Any) -> Any:
    """A number of a column that became wider than JSON's numbers is a string from then on."""
    becomes_text = column["type"].split("(")[0] in ("bigint", "numeric", "oid", "text")
    return str(value) if becomes_text and type(value) is int else value
