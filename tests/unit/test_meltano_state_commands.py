"""Meltano's state through its commands, with programs that answer as some Meltano may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.meltano import MeltanoError, MeltanoStateResource

STATE = {"singer_state": {"bookmarks": {"apples": {"id": 3}}}}


def states_of(folder: Path, own_settings: dict[str, Any], answer: str) -> MeltanoStateResource:
    """A project whose Meltano has these settings for Postgres, and answers all else with this."""
    (folder / "meltano.yml").write_text("version: 1\n")
    backend = {"uri": "postgres://nowhere.invalid/db", "lock_timeout_seconds": 10} | own_settings
    (folder / "settings").write_text(json.dumps({"state_backend": backend}))
    (folder / "answer").write_text(answer)
    program = folder / "meltano"
    program.write_text(
        f"#!/bin/sh\ncase $1 in config) cat '{folder}/settings';; *) cat '{folder}/answer';; esac\n"
    )
    program.chmod(0o755)
    return MeltanoStateResource(project_dir=str(folder), executable=str(program))


def test_the_tables_of_another_backend_for_postgres_are_left_alone(tmp_path: Path) -> None:
    """They may have the names of ours, which would rename them."""
    other = states_of(tmp_path, {"postgres": {"host": {}, "sslmode": {}}}, json.dumps(STATE))
    assert not other.is_postgres
    assert other.get("dev:a") == STATE

    none = states_of(tmp_path, {}, "")
    assert not none.is_postgres
    assert none.get("dev:a") is None

    ours = states_of(tmp_path, {"postgres": {"host": {}, "history_versions": {}}}, "")
    assert ours.is_postgres


@pytest.mark.parametrize("answer", ["not JSON", "[]", "3"])
def test_an_answer_that_is_not_a_state_names_its_command(tmp_path: Path, answer: str) -> None:
    states = states_of(tmp_path, {}, answer)
    with pytest.raises(MeltanoError, match="`meltano state get dev:a` did not answer with"):
        states.get("dev:a")
    with pytest.raises(MeltanoError, match="`meltano state export` did not answer with"):
        states.export()
