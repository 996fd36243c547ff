"""The blocks of code on a page of the documentation, and a terminal that types its commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.forked import etl_dagster
from tests.support.waiting import PATIENCE_S

REPOSITORY: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$"
    r"|(?<=\n\n)(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)",
    re.MULTILINE | re.DOTALL,
)
_TITLE: Final = re.compile(r'title="([^"]+)"')
#: A line of a list, or of what belongs to one of its items.
_ITEM: Final = re.compile(r"[-*] |\d+\. | ")
_KEEPING: Final = "{}\nenv -0 > .exported"
_PROMPT: Final = "$ "
_HERE: Final = re.compile(r"<<'(\w+)'$")
#: What is installed already, and DuckDB's own shell, which isn't.
_PROGRAMS: Final = {
    "pip": "",
    "pipx": "",
    "uv": "",
    "duckdb": """\
import sys, duckdb
assert sys.argv[1] == "-readonly"
print(duckdb.connect(sys.argv[2], read_only=True).sql(sys.argv[3]))
""",
}
#: Gives its own descriptors and its command line to `Terminal`, and ends with the code it gets.
_SHIM: Final = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as terminal:
    terminal.connect({address!r})
    task = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
    socket.send_fds(terminal, [len(task).to_bytes(4, "big")], [0, 1, 2])
    terminal.sendall(task)
    sys.exit(terminal.recv(1)[0])
"""


def _write_program(path: Path, text: str, options: str) -> None:
    """A program in Python, whose first line may not name the interpreter: a path has spaces."""
    source = path.with_name(f"source-of-{path.name}")
    source.write_text(text, "utf-8")
    run = shlex.join([sys.executable, *options.split(), str(source)])
    path.write_text(f'#!/bin/sh\nexec {run} "$@"\n', "utf-8")
    path.chmod(0o755)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code; `language` is empty where four spaces make the block."""

    page: str
    language: str
    text: str
    title: str | None = None

    @property
    def first(self) -> str:
        """Its first line, by which lists name it."""
        return self.text.strip("\n").split("\n")[0].strip()

    @property
    def commands(self) -> str:
        """What a reader types: of a console, the lines with a prompt and their here-documents."""
        if self.language != "console":
            return self.text
        typed, ends = [], ""
        for line in self.text.splitlines():
            if ends:
                typed.append(line)
                ends = "" if line == ends else ends
            elif line.startswith(_PROMPT):
                typed.append(line.removeprefix(_PROMPT))
                ends = found[1] if (found := _HERE.search(line)) else ""
        return "\n".join(typed)


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, in order.

    Args:
        page: its path below the repository.
    """
    text = (REPOSITORY / page).read_text("utf-8")
    return list(_blocks(page, text))


def _blocks(page: str, text: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        if found["indented"] is not None:
            before = text[: found.start()].rstrip().rpartition("\n")[2]
            if not _ITEM.match(before):  # else it is the item's next paragraph
                yield Block(page, "", re.sub(r"^    ", "", found["indented"], flags=re.MULTILINE))
            continue
        body = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        title = _TITLE.search(found["info"])
        yield Block(page, found["language"], body, title[1] if title else None)


class Terminal:
    """A bash in a folder, where `etl-dagster` is a fork of a process that has it all imported.

    It keeps what was exported. The answer to every question is yes. What runs until it is stopped
    (`etl-dagster run`) ends once it has caught up.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = dict(environ)

    def type(self, commands: str) -> str:
        """The output of the commands; each of them must end with 0."""
        with self._answering() as programs:
            asked, answers = os.openpty()
            os.write(asked, b"y\n" * 8)
            try:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", _KEEPING.format(commands)],
                    cwd=self._folder,
                    env={**self._environ, "PATH": f"{programs}:{self._environ['PATH']}"},
                    stdin=answers,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=PATIENCE_S,
                )
            finally:
                os.close(asked)
                os.close(answers)
        assert done.returncode == 0, f"{commands}\nended with {done.returncode}:\n{done.stdout}"
        exported = self._folder / ".exported"
        entries = (entry.partition("=") for entry in exported.read_text("utf-8").split("\0"))
        self._environ |= {name: value for name, _, value in entries if name not in ("", "PATH")}
        exported.unlink()  # it has the administrator's password
        return done.stdout

    @contextmanager
    def _answering(self) -> Iterator[Path]:
        """A folder with the programs, while what they ask for is run."""
        programs = self._folder / ".programs"
        programs.mkdir(exist_ok=True)
        with (
            # The address of a socket has 107 bytes at most.
            tempfile.TemporaryDirectory() as short,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            address = str(Path(short) / "socket")
            shim = _SHIM.format(address=address)
            for name, text in {**_PROGRAMS, "etl-dagster": shim}.items():
                _write_program(programs / name, text, "-SE" if text is shim else "")
            listener.bind(address)
            listener.listen()
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            try:
                yield programs
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                asked, _ = listener.accept()
            except OSError:
                return
            with asked:
                asked.send(bytes([_run(asked)]))


def _run(asked: socket.socket) -> int:
    head, descriptors, *_ = socket.recv_fds(asked, 4, 3)
    content = asked.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    folder, environ, arguments = json.loads(content)
    if arguments[:1] == ["run"] and "--until-caught-up" not in arguments:
        arguments.append("--until-caught-up")
    stdin, stdout, stderr = descriptors
    command = etl_dagster(
        *arguments, cwd=Path(folder), environ=environ, stdio=(stdin, stdout, stderr)
    )
    for descriptor in descriptors:
        os.close(descriptor)
    return command.wait(PATIENCE_S) & 0xFF
