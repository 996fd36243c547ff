"""Reads a tutorial as a reader does: writes its files, types its commands, compares what comes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pexpect

from tests.support.waiting import PATIENCE_S

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: +(?P<info>[^\n]*))?\n"
    r"(?P<text>.*?)"
    r"^(?P=indent)```$"
    r"|Ctrl-C in terminal (?P<interrupt>\d+)",
    re.DOTALL | re.MULTILINE,
)
_TITLE = re.compile(r'title="([^"]+)"')
_TERMINAL = re.compile(r"Terminal (\d+)(, keeps running|, a moment later| shows)?")
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROMPT = re.compile(r"<<ended (\d*)>>")


@dataclass(frozen=True, slots=True)
class WriteFile:
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Type:
    """Commands for a terminal. What `waits` asks again until the expected output comes."""

    terminal: int
    commands: str
    keeps_running: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Expect:
    """Output as printed in the tutorial; ``...`` stands for anything, as in doctest."""

    terminal: int
    output: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C."""

    terminal: int


Step = WriteFile | Type | Expect | Interrupt


def read_steps(page: Path) -> list[Step]:
    """Everything in a page that a reader does, in order.

    A block's title says what it is: a file's name; ``Terminal N`` for commands; ``Terminal N, keeps
    running`` for one that doesn't end; ``Terminal N, a moment later`` for a question that a reader
    who was too fast asks again; ``Terminal N shows`` for output. ``Install`` alone is left out: the
    environment has it.

    Raises:
        ValueError: a block of code that is not run.
    """
    docs = page.parents[1]
    text = _SNIPPET.sub(
        lambda found: (docs / found[1]).read_text("utf-8").rstrip(), page.read_text("utf-8")
    )
    return list(_steps(text))


def _steps(text: str) -> Iterator[Step]:
    for found in _FENCE.finditer(text):
        if found["interrupt"]:
            yield Interrupt(int(found["interrupt"]))
            continue
        title = _TITLE.search(found["info"] or "")
        if title is None or title[1] == "Install":
            if title is None and found["language"] in ("python", "bash", "sql", "toml"):
                raise ValueError(f"a block without a title:\n{found['text']}")
            continue
        body = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        terminal = _TERMINAL.fullmatch(title[1])
        if terminal is None:
            yield WriteFile(title[1], body)
        elif terminal[2] == " shows":
            yield Expect(int(terminal[1]), body)
        else:
            yield Type(
                int(terminal[1]),
                body,
                keeps_running=terminal[2] == ", keeps running",
                waits=terminal[2] == ", a moment later",
            )


class Reader:
    """A user with a folder and some terminals, who does what a tutorial says."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._terminals: dict[int, _Terminal] = {}

    def follow(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case WriteFile(name, text):
                    (self._folder / name).write_text(text, "utf-8")
                case Type(number):
                    self.terminal(number).type(step)
                case Expect(number, output):
                    self.terminal(number).expect(output)
                case Interrupt(number):
                    self.terminal(number).interrupt()

    def terminal(self, number: int) -> _Terminal:
        if number not in self._terminals:
            self._terminals[number] = _Terminal(self._folder, self._environ)
        return self._terminals[number]

    def close(self) -> None:
        """Close the windows, the last one first; what still runs in them is asked to stop."""
        for _, terminal in sorted(self._terminals.items(), reverse=True):
            terminal.close()


class _Terminal:
    """A bash that keeps its variables from one block to the next."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._log = (folder / f".terminal-{id(self)}.log").open("w")
        self._bash = pexpect.spawn(
            "bash",
            ["--noprofile", "--norc"],
            cwd=str(folder),
            env={**environ, "TERM": "dumb", "PS1": "<<ended $failed>>", "PS2": ""},
            dimensions=(50, 100),
            echo=False,
            encoding="utf-8",
            timeout=PATIENCE_S,
        )
        self._bash.logfile_read = self._log
        self._output = ""
        self._is_running = True
        #: The question that may be asked again.
        self._asked: Type | None = None
        self._wait_for_prompt()

    def type(self, step: Type) -> None:
        commands = step.commands
        if self._is_running:  # it was killed from another terminal, or else fails here
            self._wait_for_prompt()
        self._asked = step if step.waits else None
        block = self._folder / f".typed-{id(self)}"
        block.write_text(f"failed=0; trap 'failed=$?' ERR\n{commands}\ntrap - ERR\n", "utf-8")
        self._output = ""
        self._is_running = True
        self._bash.sendline(f". ./{block.name}")
        if not step.keeps_running:
            failed = self._wait_for_prompt()
            assert failed == 0, f"{commands}\nended with exit code {failed}:\n{self._output}"

    def expect(self, output: str) -> None:
        pattern = ".*?".join(re.escape(part) for part in output.strip().split("..."))
        if not self._is_running:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                found = _plain(self._output).strip()
                if self._asked is None or time.monotonic() > deadline:
                    break
                if re.fullmatch(pattern, found, re.DOTALL):
                    break
                self.type(self._asked)
            assert re.fullmatch(pattern, found, re.DOTALL), f"expected:\n{output}\ngot:\n{found}"
            return
        while not (match := re.search(pattern, _plain(self._output), re.DOTALL)):
            try:
                self._output += self._bash.read_nonblocking(size=65536, timeout=PATIENCE_S)
            except (pexpect.TIMEOUT, pexpect.EOF):
                found = _plain(self._output)
                raise AssertionError(f"expected:\n{output}\ngot:\n{found}") from None
            assert not _PROMPT.search(self._output), f"it ended:\n{_plain(self._output)}"
        self._output = _plain(self._output)[match.end() :]

    def interrupt(self) -> None:
        self._bash.sendintr()
        self._wait_for_prompt()

    def close(self) -> None:
        if self._is_running and self._bash.isalive():
            self._bash.sendintr()
            self._bash.expect([_PROMPT, pexpect.EOF, pexpect.TIMEOUT])
        self._bash.close(force=True)
        self._log.close()

    def _wait_for_prompt(self) -> int:
        try:
            self._bash.expect(_PROMPT)
        except (pexpect.TIMEOUT, pexpect.EOF):
            raise AssertionError(f"it did not end:\n{self._bash.before}") from None
        self._is_running = False
        self._output += self._bash.before
        return int(self._bash.match[1] or 0)


def _plain(output: str) -> str:
    """Text as a person reads it: no colours, no blanks at the ends of lines."""
    lines = _ANSI.sub("", output).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)
