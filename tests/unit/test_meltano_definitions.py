"""The assets of a Meltano project, most of them with given streams, so that no tap is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetsDefinition

from etl_dagster.meltano import MeltanoError, MeltanoNotFound, MeltanoResource, meltano_assets

CATALOG = {
    "streams": [
        {
            "tap_stream_id": "apples",
            "metadata": [{"breadcrumb": [], "metadata": {"selected": True}}],
        },
        {"tap_stream_id": "pears", "metadata": []},
    ]
}


def assets_in(folder: Path, **more: Any) -> AssetsDefinition:
    # Any program will do: none is called.
    meltano = MeltanoResource(project_dir=str(folder), environment="dev", executable=sys.executable)
    return meltano_assets(meltano, "tap-fruit", "target-basket", **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "meltano.yml").write_text("version: 1\n")
    return tmp_path


def test_streams_come_from_names_from_a_catalog_or_from_its_file(folder: Path) -> None:
    file = folder / "catalog.json"
    file.write_text(json.dumps(CATALOG))
    apples = {AssetKey(["tap_fruit", "apples"])}
    for told in ({"streams": ["apples"]}, {"catalog": CATALOG}, {"catalog": file}):
        assert assets_in(folder, **told).keys == apples


def test_a_catalog_that_cannot_be_read_or_selects_nothing_is_an_error(folder: Path) -> None:
    with pytest.raises(MeltanoError, match=r"nowhere\.json can't be read"):
        assets_in(folder, catalog=folder / "nowhere.json")
    with pytest.raises(MeltanoError, match="has no selected stream") as caught:
        assets_in(folder, catalog={"streams": []})
    assert "meltano select tap-fruit" in caught.value.solution


def test_a_folder_without_a_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeltanoNotFound, match=r"no meltano\.yml"):
        assets_in(tmp_path, streams=["apples"])


def test_the_state_id_is_that_of_the_environment_that_meltano_would_choose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease on another ID would keep no other run away, and show another state."""

    def chosen(**more: Any) -> str:
        meltano = MeltanoResource(project_dir=str(folder), executable=sys.executable, **more)
        return meltano.state_id("tap-fruit", "target-basket").split(":")[0]

    monkeypatch.delenv("MELTANO_ENVIRONMENT", raising=False)
    (folder / "meltano.yml").write_text("default_environment: from_the_project\n")
    assert chosen() == "from_the_project"
    (folder / ".env").write_text("MELTANO_ENVIRONMENT=from_the_file\n")
    assert chosen() == "from_the_file"
    monkeypatch.setenv("MELTANO_ENVIRONMENT", "from_the_process")
    assert chosen() == "from_the_process"
    assert chosen(env={"MELTANO_ENVIRONMENT": "from_the_resource"}) == "from_the_resource"
    assert chosen(environment="dev") == "dev"


def test_the_state_id_ends_as_the_environment_says_wherever_that_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked against Meltano 4.2 and 4.4, which include files and expand variables."""
    monkeypatch.setenv("BRANCH", "blue")
    monkeypatch.delenv("COLOUR", raising=False)
    monkeypatch.delenv("MELTANO_ENVIRONMENT", raising=False)
    (folder / ".env").write_text("MELTANO_DEFAULT_ENVIRONMENT=dev\nCOLOUR=red\n")
    (folder / "meltano.yml").write_text(
        "include_paths: [more/*.yml]\nenv: {COLOUR: green}\nenvironments: [{name: prod}]\n"
    )
    (folder / "more").mkdir()
    (folder / "more" / "dev.yml").write_text(
        "environments: [{name: dev, state_id_suffix: '${BRANCH}-$COLOUR-$lower-\\${BRANCH}$NONE'}]"
    )
    meltano = MeltanoResource(project_dir=str(folder), executable=sys.executable)

    state_id = meltano.state_id("tap-fruit", "target-basket")

    assert state_id == "dev:tap-fruit-to-target-basket:blue-green-$lower-blue"


def test_a_project_that_cannot_be_read_is_named_with_its_line_but_not_its_text(
    folder: Path,
) -> None:
    (folder / "meltano.yml").write_text("version: 1\npassword: [geheim\n")
    with pytest.raises(
        MeltanoError, match=r"meltano\.yml, line 3, can't be read as YAML"
    ) as caught:
        assets_in(folder, streams=["apples"])
    assert "geheim" not in str(caught.value)
    assert caught.value.solution == "Correct the file."

    (folder / "meltano.yml").write_text("include_paths: [/etc/*.yml]\n")
    with pytest.raises(MeltanoError, match="include_paths") as caught:
        assets_in(folder, streams=["apples"])
    assert "relative" in caught.value.solution


def test_the_tap_is_asked_again_after_any_file_of_the_project_has_changed(folder: Path) -> None:
    asked = folder / "asked"
    program = folder / "program"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{asked}'\necho '{json.dumps(CATALOG)}'\n")
    program.chmod(0o755)
    (folder / "meltano.yml").write_text("default_environment: dev\ninclude_paths: [more/*.yml]\n")
    (folder / "more").mkdir()
    meltano = MeltanoResource(project_dir=str(folder), executable=str(program))

    for change in ("", "# a comment\n", "# another\n"):
        (folder / "more" / "taps.yml").write_text(change)
        for _ in range(2):
            meltano_assets(meltano, "tap-fruit", "target-basket")

    question = "--environment dev invoke --dump=catalog tap-fruit"
    assert asked.read_text().splitlines() == [question] * 3


def test_a_run_names_its_environment(folder: Path) -> None:
    """What Meltano would choose may change between the look and the run."""
    said = folder / "said"
    program = folder / "program"
    program.write_text(f'#!/bin/sh\necho "$@" > "{said}"\n')
    program.chmod(0o755)
    (folder / "meltano.yml").write_text("default_environment: prod\n")
    meltano = MeltanoResource(project_dir=str(folder), executable=str(program))

    meltano.run("tap-fruit", "target-basket")

    assert said.read_text().split() == [
        "--environment",
        "prod",
        "run",
        "tap-fruit",
        "target-basket",
    ]
