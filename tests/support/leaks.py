"""Secrets that are recognised wherever they appear, and the search for them.

Every password, token and key of the tests is made by `make_secret`, which puts the run's mark into
it. Nothing that a pipeline writes may contain the mark: `LEAKS` looks for it in captured output and
log records, in the output of commands, in the rows of every database before it is dropped, in the
logs of the test servers and, when the run ends, in every file that is left in the temporary folder.
A leak that is found while a test runs fails the test, any other fails the run (`tests.conftest`).
"""

from __future__ import annotations

import gzip
import mmap
import os
import secrets
import sqlite3
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

#: In the environment, so that the processes of one run have the same.
MARK = os.environ.setdefault("TESTS_MARK_OF_SECRETS", f"mark{secrets.token_hex(8)}")

#: Files that contain secrets on purpose, and why. Patterns for the path below the run's folder.
ALLOWED: Mapping[str, str] = {
    "*/etl.yaml": "the configuration of a pipeline, written by the test",
    "*/meltano.yml": "a Meltano project, written by the test",
    "*/password": "a server's random password; only its owner can read it",
    "*/roles.json": "the demo's random passwords; only their owner can read them",
    "*/pgpass": "libpq's file of passwords, written by the test",
    "*/source.env": "the variables of a tutorial's reader",
    "*/tap-fruit.py": "a program that fails with a secret, written by the test",
    "*/etl_plugins.py": "a package that fails with a secret, written by the test",
}

#: Folders in which nothing of a run is written, besides what is compiled of a file next to it.
_PASSED_OVER = {"site-packages", "__pycache__"}
#: Tables of a source that are larger contain generated rows.
_MOST_BYTES_OF_A_TABLE = 8 << 20


def make_secret(like: str = "") -> str:
    """A secret of this run, which begins with `like`."""
    return f"{like}{MARK}"


#: Of the roles that tests create.
PASSWORD = make_secret("pw")


def _spellings(secret: bytes) -> Iterator[bytes]:
    """A secret as it is, and inside of what is encoded with Base64, as in HTTP's Basic scheme."""
    yield secret
    for before in range(3):
        encoded = b64encode(bytes(before) + secret)
        # The characters at both ends depend on what is next to the secret.
        yield encoded[-(-before * 4 // 3) : (before + len(secret)) * 4 // 3]


class Leaks:
    """What was found so far; each entry says where."""

    def __init__(self, mark: str = MARK) -> None:
        self.found: list[str] = []
        self._mark = mark
        self._needles = list(_spellings(mark.encode()))

    def look(self, text: str | bytes | None, where: str) -> None:
        """Search a text."""
        content = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if content and (excerpt := self._excerpt(content, self._needles)):
            self.found.append(f"{where}: {excerpt}")

    def look_at_files(self, folder: Path) -> None:
        """Search all files of a folder, and the passwords of servers that were started there."""
        for of_one_test in sorted(folder.iterdir()):
            files = list(_files(of_one_test))
            needles = [*self._needles, *_passwords(files)]
            for file in files:
                if not is_allowed(file.relative_to(folder)):
                    self._look_at_file(file, needles)

    def look_at_rows(self, dsn: str) -> None:
        """Search the rows of a database, as text."""
        # Tests give databases settings, some of them hostile.
        pinned = "-c client_encoding=UTF8 -c search_path=pg_catalog -c lock_timeout=30s"
        dsn = make_conninfo(dsn, options=f"{pinned} -c bytea_output=escape")
        with psycopg.connect(dsn, autocommit=True) as connection:
            tables = connection.execute(
                "select nspname::text, relname::text from pg_class c"
                " join pg_namespace n on n.oid = relnamespace"
                " where relkind = 'r' and nspname not in ('pg_catalog', 'information_schema')"
                " and relpersistence <> 't' and pg_table_size(c.oid) between 1 and %s",
                [_MOST_BYTES_OF_A_TABLE],
            ).fetchall()
            if not tables:
                return
            search = sql.SQL(" union all ").join(
                sql.SQL(
                    "select {} where exists"
                    " (select from only {} x where position({} in (x.*)::text) > 0)"
                ).format(sql.Literal(".".join(table)), sql.Identifier(*table), self._mark)
                for table in tables
            )
            for (table,) in connection.execute(search):
                self.found.append(f"rows of {table}")

    def _look_at_file(self, file: Path, needles: Iterable[bytes]) -> None:
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                excerpt = self._excerpt(content, needles)
                start = content[:16]
        if not excerpt and start.startswith(b"\x1f\x8b"):
            excerpt = self._excerpt(gzip.decompress(file.read_bytes()), needles)
        if not excerpt and start == b"SQLite format 3\0":
            # A long text is spread over pages.
            excerpt = self._excerpt(_dump(file), needles)
        if excerpt:
            self.found.append(f"{file}: {excerpt}")

    def _excerpt(self, content: bytes | mmap.mmap, needles: Iterable[bytes]) -> str:
        """What is around the first secret, which isn't shown; empty if there is none."""
        for needle in needles:
            at = content.find(needle)
            if at >= 0:
                before = content[max(0, at - 60) : at].decode("utf-8", "replace")
                after = content[at + len(needle) :][:20].decode("utf-8", "replace")
                return repr(f"{before}(secret){after}")
        return ""


LEAKS = Leaks()


def is_allowed(path: Path) -> bool:
    """Whether a file of a run may contain secrets."""
    return any(fnmatch(str(path), pattern) for pattern in ALLOWED)


def _files(top: Path) -> Iterator[Path]:
    """The files of a folder; the file itself if it is one. Nothing behind a symbolic link."""
    if top.is_symlink():
        return
    if top.is_file():
        yield top
    for parent, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name not in _PASSED_OVER]
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _passwords(files: Iterable[Path]) -> set[bytes]:
    """The random ones of servers that other processes started; see `EmbeddedPostgres`."""
    return {file.read_bytes().strip() for file in files if file.name == "password"}


def _dump(file: Path) -> bytes:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        return "\n".join(database.iterdump()).encode()
