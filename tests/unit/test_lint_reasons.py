"""What lint is told to overlook has its reason next to it."""

from __future__ import annotations

import re
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
_FOLDERS = ("benchmarks", "docs", "etl_dagster", "examples", "tests")
_IGNORED = re.compile(r"# (?:ruff: )?noqa\b(?P<codes>: [A-Z0-9, ]+)?(?P<reason>  \(.+\))?$")


def test_every_noqa_names_its_rule_and_has_a_reason() -> None:
    bare, files = [], [path for folder in _FOLDERS for path in (_REPOSITORY / folder).rglob("*.py")]
    for path in files:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            if (found := _IGNORED.search(line)) is None:
                continue
            above = lines[number - 1].strip() if number else ""
            if not found["codes"] or not (found["reason"] or above.startswith("# ")):
                bare.append(f"{path}:{number + 1}")

    assert files
    assert bare == []
