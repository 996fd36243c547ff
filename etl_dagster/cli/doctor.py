"""`etl-dagster doctor`: what is fine, what is missing, what to do."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.failures import FAILED
from etl_dagster.cli.listing import NAMES
from etl_dagster.cli.options import config_option, json_option, load_each

if TYPE_CHECKING:
    from etl_dagster.runtime.checking.check import Check

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "red")}
#: With fewer columns than this, texts are not broken into lines.
_NARROW = 30


@click.command(short_help="Check source, state store and destination.")
@config_option
@click.option("--all", "everything", is_flag=True, help="All findings, also where they are many.")
@json_option
@click.pass_context
def doctor(context: click.Context, config_path: Path, everything: bool, as_json: bool) -> None:
    """Check source, state store and destination, line by line; changes nothing.

    Ends with exit code 1 when there is an error, 0 when there are only warnings.

    \b
    etl-dagster doctor --json
    """
    configs = load_each(config_path)
    from etl_dagster.cli.checks import all_checks, running_process

    checks = {name: all_checks(config) for name, config in configs.items()}
    if as_json:
        import json

        found = {name: [check.to_json() for check in each] for name, each in checks.items()}
        click.echo(json.dumps(found.get("", found), indent=2))
    else:
        for name, each in checks.items():
            if name:
                click.echo(click.style(f"{name}:", bold=True))
            _show(each, running_process(configs[name]), everything=everything)
    levels = {check.level for each in checks.values() for check in each}
    context.exit(FAILED if "error" in levels else 0)


def _show(checks: list[Check], running: str | None, *, everything: bool) -> None:
    """Print the report.

    Args:
        running: what runs the pipeline; None when nothing does.
    """
    width = max(len(check.name) for check in checks)
    before = " " * (7 + 2 + width + 2)
    room = shutil.get_terminal_size().columns - len(before) if sys.stdout.isatty() else None
    kinds = Counter((check.name, check.level) for check in checks)
    shown: Counter[tuple[str, str]] = Counter()
    for check in checks:
        kind = (check.name, check.level)
        shown[kind] += 1
        if not everything and shown[kind] > NAMES:
            if shown[kind] == kinds[kind]:
                click.echo(f"{before}... and {kinds[kind] - NAMES:,} more; --all shows all")
            continue
        mark, color = _MARKS[check.level]
        message = f"\n{before}".join(wrapped(check.message, room))
        click.echo(f"{click.style(f'{mark:<7}', fg=color)}  {check.name:<{width}}  {message}")
        if check.solution:
            for line in wrapped(f"-> {check.solution}", room):
                click.echo(f"{before}{click.style(line, bold=True)}")
    errors = sum(check.level == "error" for check in checks)
    warnings = sum(check.level == "warning" for check in checks)
    if any(check.failure is not None for check in checks):
        summary = f"{_count(errors, 'error')}: the pipeline can't start."
    elif errors:
        summary = f"{_count(errors, 'error')}: the pipeline runs without what is named above."
    else:
        ready = f"Ready, with {_count(warnings, 'warning')}." if warnings else "Ready."
        starts = "`etl-dagster run` starts it." if running is None else f"It runs already{running}."
        summary = f"{ready} {starts}"
    click.echo(f"\n{summary}")


def wrapped(text: str, room: int | None) -> list[str]:
    """The text in lines of at most `room` columns; in one line if there is too little room.

    A command, in backticks, is never broken, however long it is, so that it can be copied.
    """
    if room is None or room < _NARROW:
        return [text]
    whole = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, room, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines] or [text]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
