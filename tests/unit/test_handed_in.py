"""What tests hand in reaches the place where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.config import SourceConfig
from etl_dagster.errors import SourceUnreachable
from tests.support.asking import control_with
from tests.support.dagster_in_process import timed
from tests.support.known_tables import NOWHERE


def test_a_resource_keeps_its_waits_when_dagster_sets_it_up(tmp_path: Path) -> None:
    waits = {"first_pause_s": 3.0}
    with timed(tmp_path / "etl.yaml", waits).process_config_and_initialize_cm() as resource:
        assert resource.get_timing().first_pause_s == 3.0
        waits["first_pause_s"] = 0.0
        assert resource.get_timing().first_pause_s == 0.0
        assert resource.get_timing().longest_pause_s == 900.0


def test_callbacks_run_before_a_question_and_only_after_an_answer() -> None:
    happened: list[str] = []
    make_control = control_with(
        before=lambda asked: happened.append(f"before {asked}"),
        after=lambda asked: happened.append(f"after {asked}"),
    )
    source = SourceConfig(dsn=f"postgresql://etl@{NOWHERE}/shop", publication="etl_pub")
    control = make_control(source, application_name="test")
    with pytest.raises(SourceUnreachable):
        control.ask("looking", lambda connection: None)

    assert happened == ["before looking"]
