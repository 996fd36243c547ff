"""A loader of a Meltano project, with the settings that it has there."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.destinations.singer import SingerDestination
from etl_dagster.destinations.singer.failures import TargetMissing
from etl_dagster.errors import DestinationError
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, insert, order
from tests.support.meltano import MELTANO, MeltanoProject
from tests.support.singer_target import Tables, program
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeltanoProject:
    monkeypatch.setenv("PATH", str(MELTANO.parent), prepend=":")
    monkeypatch.setenv("MELTANO_SEND_ANONYMOUS_USAGE_STATS", "false")
    loader = {
        "name": "target-scripted",
        "namespace": "target_scripted",
        "executable": str(program()),
        "settings": [{"name": "folder"}, {"name": "password", "sensitive": True}],
        "config": {"folder": "nowhere", "password": "$TARGET_PASSWORD"},
    }
    heir = {"name": "target-heir", "inherit_from": "target-scripted"}
    return MeltanoProject.create(
        tmp_path / "project", "", plugins={"loaders": [loader, heir]}, default_environment="dev"
    )


@pytest.mark.parametrize("name", ["target-scripted", "target-heir"])
def test_a_loader_is_run_with_the_settings_of_its_project(
    project: MeltanoProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TARGET_PASSWORD", "pa55")
    destination = SingerDestination(
        name, project=project.folder, environment="dev", config={"folder": str(tmp_path)}
    )
    destination.startup(MemoryStore())
    found, _ = destination._target.look()
    assert found.settings == {"folder": str(tmp_path), "password": "pa55"}
    assert found.secrets == {"pa55"}

    events = batch(Transactions().commit(insert(ORDERS, **order(1))))
    result = destination.write_events(events)
    assert result is not None
    result.result(PATIENCE_S)
    destination.shutdown()

    assert len(Tables(tmp_path).records("public-orders")) == 1


def test_a_loader_that_the_project_does_not_have_is_named(project: MeltanoProject) -> None:
    with pytest.raises(DestinationError, match="meltano invoke --dump=config target-x") as raised:
        SingerDestination("target-x", project=project.folder).check()

    assert "meltano install loader target-x" in raised.value.solution


def test_a_folder_that_is_not_a_project_is_named(tmp_path: Path, project: MeltanoProject) -> None:
    with pytest.raises(TargetMissing, match=r"has no meltano\.yml"):
        SingerDestination("target-x", project=tmp_path).check()
