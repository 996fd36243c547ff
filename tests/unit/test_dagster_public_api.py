"""Only what `dagster` and `dagster.components` export is used.

So a new version of it can't break us unannounced.
"""

from __future__ import annotations

import ast
from pathlib import Path

import etl_dagster

ROOT = Path(etl_dagster.__file__).parent


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


#: Documented, with names that `dagster` doesn't export.
PUBLIC = {"dagster.components"}


def test_nothing_is_imported_from_inside_of_dagster() -> None:
    inside = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        for name in imports(path)
        if name.startswith("dagster.") and name not in PUBLIC
    }
    assert not inside


def test_the_replicator_knows_nothing_of_dagster() -> None:
    names = imports(ROOT / "replicator.py")
    assert not [name for name in names if "dagster" in name.replace("etl_dagster", "")]
    assert not [name for name in names if name.startswith("etl_dagster.integrations.dagster")]
