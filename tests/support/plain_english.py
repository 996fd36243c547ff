"""Finds wording that a pattern can find and CONTRIBUTING asks to avoid: ``make lint`` runs it.

    python -m tests.support.plain_english [FILE ...]

Without files, it reads the whole repository. Exit code 1 when it finds any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = ("benchmarks", "docs", "etl_dagster", "examples", "tests")
_READ = {".md", ".py", ".sql", ".toml", ".yaml", ".yml"}

#: Each pattern, and what to write instead.
PATTERNS = {
    re.compile(r"(?<![Tt]here )\b(?:is|are) no\b(?! (?:longer|more|need)\b)", re.IGNORECASE): (
        '"is not a", or "there is no"'
    ),
    re.compile(r"\b(?:some|no)body(?:'s)?\b", re.IGNORECASE): (
        "who it is: Postgres, a user, another process"
    ),
    re.compile(
        r"\bwho(?:so)?ever\b", re.IGNORECASE
    ): "who it is: a user, another process, a thread",
    re.compile(r"\b(?:[Gg]o|[Gg]oes|[Gg]oing|[Ww]ent|[Gg]one) on\b(?! (?:alongside|to) )"): (
        '"continue" or "resume"'
    ),
    re.compile(r"\bfor so long\b", re.IGNORECASE): '"for this long", or the time',
    re.compile(r"\bbeside\b", re.IGNORECASE): '"next to", "besides" or "alongside"',
    re.compile(r"\banew\b", re.IGNORECASE): '"again", or "from the beginning"',
    re.compile(r"\btold so\b"): "what it gets: an error, a warning, an answer",
    re.compile(r"\bin vain\b", re.IGNORECASE): '"useless", or "without success"',
    re.compile(r"\bstands? still\b"): '"waits", "hangs" or "is stopped"',
    re.compile(r"\bmend(?:s|ed|ing)?\b", re.IGNORECASE): '"fix", "correct" or "repair"',
}
#: Texts that aren't English: the name of an account of Unix.
_NAMES = re.compile(r'"nobody"')
#: A test's name is read as a sentence, too.
_TEST = re.compile(r"\bdef test(\w+)")


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """The number of the line, from 1, what stands there, and what to write instead."""
    for number, line in enumerate(text.splitlines(), 1):
        line = _TEST.sub(lambda name: name[1].replace("_", " "), line)
        for pattern, instead in PATTERNS.items():
            for found in pattern.finditer(_NAMES.sub("", line)):
                yield number, found.group(), instead


def _files() -> list[Path]:
    """Every file of the repository, without hidden ones and what is built."""
    below = [file for folder in _FOLDERS for file in (ROOT / folder).rglob("*")]
    built = {ROOT / line for line in (ROOT / ".gitignore").read_text().splitlines()}
    return sorted(
        file
        for file in (*below, *ROOT.iterdir())
        if file.is_file()
        and file not in built
        and not any(part.startswith(".") for part in file.parts[len(ROOT.parts) :])
    )


def main(arguments: list[str]) -> int:
    """Print what is found, one line each; the exit code."""
    found = 0
    for file in [Path(name).resolve() for name in arguments] or _files():
        if file.suffix not in _READ or file == Path(__file__).resolve() or not file.exists():
            continue
        for number, words, instead in findings(file.read_text()):
            found += 1
            print(f'{file.relative_to(ROOT)}:{number}: "{words}"; write {instead}')
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
