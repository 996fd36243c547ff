"""Commands that the documentation names are there, with the options that it gives them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from etl_dagster.cli.app import cli

_REPOSITORY = Path(__file__).parents[2]
_PAGES = sorted(
    path
    for folder in (".", "docs/**", "examples/**", "etl_dagster")
    for path in _REPOSITORY.glob(f"{folder}/*.md")
    # The reference is made from the commands themselves.
    if ".venv" not in path.parts and path.parts[-2:] != ("generated", "command-line.md")
)
_LINE = re.compile(r"^ *(?:\$ )?((?:etl-dagster|make|python -m) .*)$", re.MULTILINE)
_INLINE = re.compile(r"`((?:etl-dagster|make|python -m) [^`]+)`")
#: Where a shell ends a command, and what stands for something that the reader knows.
_END, _LEFT_OUT = {"|", ">", "&&", ";", "&"}, re.compile(r"\.\.\.|\[.*\]|\(.*")
_TARGETS = re.findall(r"^([a-z-]+):", (_REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)


def commands_of(page: Path) -> Iterator[list[str]]:
    text = page.read_text("utf-8")
    for block in re.findall(r"```\w*[^\n]*\n.*?```|(?:^    .*\n)+", text, re.DOTALL | re.MULTILINE):
        for line in _LINE.findall(block.replace("\\\n", " ")):
            yield words_of(line)
    for inline in _INLINE.findall(text):
        yield words_of(inline)


def words_of(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quoted text continues in the next line
        words = shlex.split(f'{line}"', comments=True)
    end = next((n for n, word in enumerate(words) if word in _END), len(words))
    return [word for word in words[:end] if not _LEFT_OUT.fullmatch(word)]


def parse(words: list[str]) -> None:
    """Read the command line as the command does, and do nothing.

    Raises:
        UsageError: there is no such command or option.
    """
    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            if rest[0] not in {text for p in command.params for text in p.opts} | {"--help"}:
                raise click.NoSuchOption(rest[0])
            rest = rest[1:]
        if not rest:
            return
        name, found, rest = command.resolve_command(click.Context(command), rest)
        assert found is not None, name
        command = found
    try:
        command.make_context(command.name, [word for word in rest if word != "--help"])
    except click.MissingParameter:
        pass  # only its name is meant


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_REPOSITORY)))
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    wrong = []
    for words in commands_of(page):
        if words[0] == "make":
            targets = [w for w in words[1:] if re.fullmatch(r"[a-z-]+", w)]
            wrong += [f"make {target}" for target in targets if target not in _TARGETS]
        elif words[0] == "python":
            if importlib.util.find_spec(words[2]) is None:
                wrong.append(" ".join(words))
        else:
            try:
                parse(words)
            except click.UsageError as error:
                wrong.append(f"{' '.join(words)}: {error.format_message()}")
    assert wrong == []


def test_commands_are_found_in_blocks_and_in_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type `etl-dagster run --plain`, or:\n\n    etl-dagster status | less\n\n"
        "```console\n$ etl-dagster reset --all  # asks\n```\n"
    )

    assert sorted(commands_of(page)) == [
        ["etl-dagster", "reset", "--all"],
        ["etl-dagster", "run", "--plain"],
        ["etl-dagster", "status"],
    ]
    with pytest.raises(click.NoSuchOption):
        parse(["etl-dagster", "query", "--format", "csv", "select 1"])
    with pytest.raises(click.UsageError):
        parse(["etl-dagster", "nonsense"])
