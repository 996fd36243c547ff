"""Record a terminal as an SVG that plays by itself: ``make recording``.

Everything in it runs: a fresh Postgres, a workload, and the commands of `SCENES`. Text, no font, no
script, so that it also plays as a picture in README.
"""

from __future__ import annotations

import html
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
import psycopg
import pyte

from etl_dagster.demo.server import EmbeddedPostgres

COLUMNS, LINES = 100, 26
#: A command, how long it may run until Ctrl-C (None: it ends by itself), and how long its last
#: screen stays; seconds.
SCENES: tuple[tuple[str, float | None, float], ...] = (
    ('etl-dagster init --dsn "$SHOP" --publication shop --path shop.duckdb', None, 2.0),
    ("etl-dagster doctor", None, 4.0),
    ("etl-dagster run", 12.0, 1.5),
    ('etl-dagster query "select count(*) as orders from public.orders"', None, 4.0),
)
_LOOK_S, _KEY_S = 0.5, 0.1
_FRAME_KEYS = 3  # keys that are typed between two frames

_SHOP = """
CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers, total numeric(10, 2) NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT now());
INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 1000) AS n;
INSERT INTO orders (customer_id, total)
    SELECT 1 + n % 1000, n % 500 FROM generate_series(1, 500000) AS n;
CREATE PUBLICATION shop FOR TABLE customers, orders;
"""
_WORK = """
INSERT INTO orders (customer_id, total) SELECT 1 + n % 1000, n % 100 FROM generate_series(1, 400) n;
UPDATE orders SET total = total + 1 WHERE id % 5000 = %s;
"""

_PALETTE = {
    "black": "#45475a",
    "red": "#f38ba8",
    "green": "#a6e3a1",
    "brown": "#f9e2af",
    "blue": "#89b4fa",
    "magenta": "#f5c2e7",
    "cyan": "#94e2d5",
    "white": "#bac2de",
}
_TEXT, _GROUND = "#cdd6f4", "#1e1e2e"
_CHAR_W, _LINE_H, _MARGIN = 7.6, 17, 14


@dataclass
class Recording:
    """Screens, each with the seconds for which it stays."""

    frames: list[tuple[list[str], float]] = field(default_factory=list)

    def add(self, rows: list[str], seconds: float) -> None:
        """Add a screen; an unchanged one only stays for longer."""
        if self.frames and self.frames[-1][0] == rows:
            rows, before = self.frames.pop()
            seconds += before
        self.frames.append((rows, seconds))

    def svg(self) -> str:
        """The whole picture. Rows that come again are drawn once."""
        total = sum(seconds for _, seconds in self.frames)
        drawn: dict[str, int] = {}
        styles, body, begins = [], [], 0.0
        for number, (rows, seconds) in enumerate(self.frames):
            ends = begins + seconds
            styles.append(
                f"@keyframes f{number}{{0%{{visibility:hidden}}"
                f"{100 * begins / total:.3f}%{{visibility:visible}}"
                f"{100 * ends / total:.3f}%{{visibility:hidden}}}}"
                f"#f{number}{{animation:f{number} {total:.1f}s step-end infinite}}"
            )
            uses = "".join(
                f'<use href="#r{drawn.setdefault(row, len(drawn))}" y="{line * _LINE_H}"/>'
                for line, row in enumerate(rows)
                if row
            )
            body.append(f'<g id="f{number}" class="f">{uses}</g>')
            begins = ends
        rows = "".join(f'<g id="r{number}">{row}</g>' for row, number in drawn.items())
        width, height = COLUMNS * _CHAR_W + 2 * _MARGIN, LINES * _LINE_H + 2 * _MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" role="img" aria-label="etl-dagster in a terminal">'
            f"<style>text{{font:13px ui-monospace,Menlo,Consolas,monospace;white-space:pre}}"
            f".f{{visibility:hidden}}{''.join(styles)}</style><defs>{rows}</defs>"
            f'<rect width="100%" height="100%" rx="8" fill="{_GROUND}"/>'
            f'<g transform="translate({_MARGIN},{_MARGIN + 12})">{"".join(body)}</g></svg>\n'
        )


class Terminal:
    """A screen on which commands run."""

    def __init__(self, folder: Path, environment: dict[str, str], recording: Recording) -> None:
        self._folder, self._environment, self._recording = folder, environment, recording
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.Stream(self._screen)

    def run(self, command: str, ctrl_c_after_s: float | None, stays_s: float) -> None:
        """Type a command, run it, and stop it in time.

        Raises:
            SystemExit: it failed, or did not end.
        """
        self._stream.feed("\x1b[32m$\x1b[0m ")
        for at in range(0, len(command), _FRAME_KEYS):
            self._stream.feed(command[at : at + _FRAME_KEYS])
            self._record(_KEY_S)
        self._stream.feed("\r\n")
        child = pexpect.spawn(
            "/bin/sh",
            ["-c", f"exec {command}"],
            cwd=str(self._folder),
            env=self._environment,
            dimensions=(LINES, COLUMNS),
            encoding="utf-8",
            timeout=None,
        )
        begun, is_stopped = time.monotonic(), False
        while self._feed(child):
            self._record(_LOOK_S)
            passed = time.monotonic() - begun
            if ctrl_c_after_s is not None and passed > ctrl_c_after_s and not is_stopped:
                child.sendintr()
                is_stopped = True
            if passed > 120:
                child.close(force=True)
                raise SystemExit(f"{command} did not end")
        child.close()
        if child.exitstatus != 0:
            raise SystemExit(f"{command}: exit code {child.exitstatus}")
        self._record(stays_s)

    def _feed(self, child: pexpect.spawn) -> bool:
        """Show what is printed until the next look; False once the command has ended."""
        until = time.monotonic() + _LOOK_S
        while (left := until - time.monotonic()) > 0:
            try:
                self._stream.feed(child.read_nonblocking(65536, timeout=left))
            except pexpect.TIMEOUT:
                return True
            except pexpect.EOF:
                return False
        return True

    def _record(self, seconds: float) -> None:
        buffer = self._screen.buffer
        folder = str(self._folder)
        self._recording.add(["".join(_row(buffer[line], folder)) for line in range(LINES)], seconds)


def _row(cells: object, folder: str) -> Iterator[str]:
    """Text of one line, in pieces of one style each; `folder` by a name that says more."""
    pieces: list[tuple[int, str, str]] = []
    for column in range(COLUMNS):
        cell = cells[column]  # type: ignore[index]  # pyte has no types
        colour = _PALETTE.get(cell.fg, _TEXT if cell.fg == "default" else f"#{cell.fg}")
        style = f'fill="{colour}"' + (' font-weight="bold"' if cell.bold else "")
        if pieces and pieces[-1][1] == style:
            at, _, text = pieces.pop()
            pieces.append((at, style, text + cell.data))
        else:
            pieces.append((column, style, cell.data))
    for at, style, text in pieces:
        if text := text.rstrip().replace(folder, "/home/you/shop"):
            shown = text.lstrip()
            x = (at + len(text) - len(shown)) * _CHAR_W
            yield (
                f'<text x="{x:.1f}" {style} lengthAdjust="spacingAndGlyphs" '
                f'textLength="{len(shown) * _CHAR_W:.1f}">{html.escape(shown)}</text>'
            )


def _work(dsn: str, ends: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as source:
        for turn in range(1_000_000):
            if ends.wait(0.05):
                return
            source.execute(_WORK.replace("%s", str(turn % 5000)))


def main(target: Path) -> None:
    """Record all scenes into a file."""
    recording = Recording()
    with tempfile.TemporaryDirectory() as name, EmbeddedPostgres(Path(name) / "pg") as server:
        folder = Path(name) / "shop"
        folder.mkdir()
        folder.chmod(0o700)
        with psycopg.connect(server.dsn(password=server.password), autocommit=True) as source:
            source.execute(_SHOP)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SHOP": server.dsn(),
            "SOURCE_PASSWORD": server.password,
            "TERM": "xterm-256color",
        }
        terminal = Terminal(folder, environment, recording)
        ends = threading.Event()
        worker = threading.Thread(target=_work, args=[server.dsn(password=server.password), ends])
        worker.start()
        try:
            for command, ctrl_c_after_s, stays_s in SCENES:
                print(f"$ {shlex.split(command)[0]} {command.split()[1]}", flush=True)
                terminal.run(command, ctrl_c_after_s, stays_s)
        finally:
            ends.set()
            worker.join()
    target.write_text(recording.svg(), encoding="utf-8")
    print(f"{target}: {target.stat().st_size // 1024} kB, {len(recording.frames)} screens")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/terminal.svg"))
