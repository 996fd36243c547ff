"""Tests hand in a clock, a `Timing`, a store of their own, and replace nothing of ours.

A patch names a private thing by a string, so it holds code in place, and is silently without effect
once the thing is called otherwise.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

#: By file, what is replaced there all the same, and why.
ALLOWED = {
    # The test makes sure that it isn't called.
    "integration/test_continuation.py": {"PostgresStore.get_table_schema"},
    "integration/test_odd_values.py": {"OddValues.__getattribute__", "Quarantine.__getattribute__"},
    # The call is passed through, and watched.
    "integration/test_postgres_destination.py": {"binary.encoded"},
    "integration/test_http_pipeline.py": {"HttpClient.post"},
    # The call is passed through, and its answer is lost; or a table is altered before it.
    "integration/test_meltano_storage.py": {"session.send", "writing.send"},
    "integration/test_postgres_rows.py": {
        "DestinationConnections.reader",
        "connections._READER_LOCK_TIMEOUT",
        "rows._PIECE_BLOCKS",
        "rows.read_queries",
    },
    # A whole tick is evaluated, whose parts are not handed in.
    "unit/test_dagster_component.py": {"tick.observe", "RecentNotices.lines"},
    "unit/test_dagster_copies.py": {"assets.copy_one_table"},
    # A loss is noticed between two pieces of a group, of which there are none in small ones.
    "integration/test_table_groups.py": {"slot_watch._EVERY_S", "group_copy._TABLES_AT_ONCE"},
    # It would connect.
    "unit/test_copy_source.py": {
        "copy_source.ChunkReader",
        "copy_source.connect",
        "copy_source.stored_encoding",
    },
    "unit/test_group_copy.py": {"group_copy.CopyConnection"},
    "unit/test_belonging.py": {"etl_dagster.runtime.checking.origin.fetch_timeline_ends"},
    "unit/test_dagster_pipeline_checks.py": {"control.SourceControl"},
    "unit/test_dagster_resources.py": {"etl_dagster.stores.postgres.PostgresStore"},
}


def test_no_test_replaces_our_own_code() -> None:
    found = {
        path.relative_to(TESTS).as_posix(): set(patched(path.read_text("utf-8")))
        for path in TESTS.rglob("test_*.py")
    }
    assert {file: names for file, names in found.items() if names} == ALLOWED


def patched(source: str) -> Iterator[str]:
    """What of the package the source replaces by a ``setattr`` of a fixture."""
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "etl_dagster"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("setattr", "delattr", "setitem", "patch", "object"):
            continue
        match node.args:
            case [ast.Constant(value=str(path)), *_] if path.startswith("etl_dagster"):
                yield path
            case [ast.Name(id=name), ast.Constant(value=str(attribute)), *_] if name in ours:
                yield f"{name}.{attribute}"
            case [ast.Name(id=name), ast.Name(), *_] if name in ours:
                yield f"{name}, whatever is given"


def test_a_patch_is_found_however_it_is_written() -> None:
    source = """
from etl_dagster.runtime import slot
from etl_dagster.runtime.pipeline import Pipeline as P
import os

def test(monkeypatch, mock):
    monkeypatch.setattr("etl_dagster.runtime.slot._S", 1)
    monkeypatch.setattr(slot, "_S", 1)
    with monkeypatch.context() as patched:
        patched.setattr(P, "run", None)
    mock.patch("etl_dagster.runtime.slot.create_slot")
    monkeypatch.setattr(os, "pwrite", None)
    monkeypatch.setenv("A", "b")
"""
    assert [*patched(source)] == [
        "etl_dagster.runtime.slot._S",
        "slot._S",
        "etl_dagster.runtime.slot.create_slot",
        "P.run",
    ]
