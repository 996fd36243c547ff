"""The assets of a Meltano project whose streams are told, so that no tap is asked."""

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


def test_a_catalog_that_cannot_be_read_or_selects_nothing_is_told(folder: Path) -> None:
    with pytest.raises(MeltanoError, match=r"nowhere\.json can't be read"):
        assets_in(folder, catalog=folder / "nowhere.json")
    with pytest.raises(MeltanoError, match="has no selected stream") as caught:
        assets_in(folder, catalog={"streams": []})
    assert "meltano select tap-fruit" in caught.value.solution


def test_a_folder_without_a_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeltanoNotFound, match=r"no meltano\.yml"):
        assets_in(tmp_path, streams=["apples"])
