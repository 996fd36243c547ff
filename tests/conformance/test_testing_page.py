"""What the page about the suites says is what happens when its reader does it."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

_PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "testing.md").read_text("utf-8")


def _block(title: str) -> str:
    found = re.search(rf'```python title="{re.escape(title)}"\n(.*?)```', _PAGE, re.DOTALL)
    assert found, f"the page has no block {title}"
    return found.group(1)


def test_the_example_fails_in_the_checks_that_are_named_until_it_is_corrected(
    tmp_path: Path,
) -> None:
    test = _block("test_jsonl.py")
    (tmp_path / "jsonl.py").write_text(_block("jsonl.py"))
    (tmp_path / "corrected.py").write_text(_block("jsonl.py, corrected"))
    (tmp_path / "test_jsonl.py").write_text(test)
    corrected = test.replace("from jsonl import", "from corrected import")
    (tmp_path / "test_corrected.py").write_text(corrected.replace("TestJson", "TestCorrectedJson"))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    failed = set(re.findall(r"^FAILED test_jsonl\.py::TestJsonLines::(\w+)", ran.stdout, re.M))
    assert failed == {
        "test_the_copy_brings_values_without_loss",
        "test_recorded_changes_have_values_without_loss",
    }
    assert all(f"`{name}`" in _PAGE for name in failed)
    assert "FAILED test_corrected.py" not in ran.stdout
    shown = re.findall(r"^E {3,}(.+)$|\[1\] \.\.\. (.+)$", _PAGE, re.M)
    assert len(shown) == 3
    assert all((first or second) in ran.stdout for first, second in shown)
    assert re.search(r"^2 failed, \d\d passed, \d+ skipped", ran.stdout, re.M), ran.stdout[-500:]


def test_the_batch_made_by_hand_holds_what_the_page_shows() -> None:
    examples = doctest.DocTestParser().get_doctest(_PAGE, {}, "testing.md", None, None)

    assert examples.examples
    results = doctest.DocTestRunner().run(examples)
    assert results.failed == 0


@pytest.mark.parametrize("suite", ["DestinationSuite", "StoreSuite"])
def test_every_hook_is_on_the_page(suite: str) -> None:
    import etl_dagster.testing

    hooks = [
        name
        for kind in getattr(etl_dagster.testing, suite).__mro__[:-1]
        for name, value in vars(kind).items()
        if not name.startswith(("_", "test_")) and not hasattr(value, "_get_wrapped_function")
    ]

    assert [name for name in hooks if f"`{name}" not in _PAGE] == []
