"""What docs/destinations/singer.md shows is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from etl_dagster.config import BatchConfig
from etl_dagster.destinations.singer import SingerDestinationConfig
from etl_dagster.destinations.singer.streams import METADATA
from tests.support.real_targets import PACKAGES

PAGE = (Path(__file__).parents[2] / "docs/destinations/singer.md").read_text("utf-8")


@pytest.mark.parametrize(
    "block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
)
def test_each_example_is_a_section(block: str) -> None:
    section = yaml.safe_load(block)

    if "batch" in section:
        BatchConfig.model_validate(section["batch"])
    else:
        SingerDestinationConfig.model_validate(section["destination"])


def test_the_table_has_every_setting_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z][a-z_]+)` \|([^|]*)\|", PAGE, re.MULTILINE))
    fields = {n: f for n, f in SingerDestinationConfig.model_fields.items() if n != "type"}

    assert fields
    assert rows.keys() == fields.keys()
    for name, field in fields.items():
        default = rows[name].strip("` ")
        if field.is_required():
            assert default == "required"
        elif field.default not in (None, ""):
            assert default == str(field.default), name


def test_the_page_names_what_every_record_has() -> None:
    shown = set(re.findall(r"`(_sdc_[a-z_]+)`", PAGE))

    assert shown == set(METADATA)


def test_the_page_names_the_targets_that_are_tested() -> None:
    for name, packages in PACKAGES.items():
        package, _, version = packages[0].partition("==")
        assert f"https://pypi.org/project/{package}/) | {version} |" in PAGE, name
