"""What docs/destinations/http.md shows is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from etl_dagster.destinations.http import (
    HttpDestinationConfig,
    load_json_schema,
    row_json_schema,
)
from etl_dagster.destinations.http.answers import refusal
from etl_dagster.destinations.http.signature import sign
from etl_dagster.errors import TableWriteFailed
from etl_dagster.testing.changes import ORDERS

_ROOT = Path(__file__).parents[2]
PAGE = (_ROOT / "docs/destinations/http.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("json"))
def test_each_example_is_a_body(block: str) -> None:
    body = json.loads(block)
    jsonschema.Draft202012Validator(load_json_schema()).validate(body)
    rows = jsonschema.Draft202012Validator(row_json_schema(body["table"]))
    for row in [*body.get("rows", ()), *(event.get("row", {}) for event in body.get("events", ()))]:
        rows.validate(row)


def test_an_example_of_each_kind_is_there() -> None:
    bodies = [json.loads(block) for block in blocks("json")]

    assert {body["kind"] for body in bodies} == {"drop-for-copy", "rows", "events"}
    assert {body.get("end_of_copy") for body in bodies} == {None, False, True}


def test_the_lines_that_skip_what_is_known_are_those_that_the_tests_kill() -> None:
    receiver = (_ROOT / "tests/support/small_receiver.py").read_text("utf-8")
    [lines] = re.findall(r"^# \[deduplicate\]\n(.*?)^# \[end\]", receiver, re.DOTALL | re.MULTILINE)

    assert blocks("python")[0].strip() == lines.strip()


def test_the_signature_is_verified_as_shown() -> None:
    shown: dict[str, Any] = {}
    exec(blocks("python")[1], shown)
    header = re.search(r"Etl-Signature: (\S+)", PAGE)
    assert header is not None
    now = int(shown["time"].time())

    assert header[1] == sign("hush", b'{"format":1}', 1732518562)
    assert shown["is_signed"]("hush", sign("hush", b"{}", now), b"{}")
    assert not shown["is_signed"]("hush", sign("hush", b"{}", now), b"{ }")
    assert not shown["is_signed"]("hush", header[1], b'{"format":1}')


def test_every_setting_is_in_the_table_with_its_default() -> None:
    section = PAGE.partition("## Settings")[2]
    shown = dict(re.findall(r"^\| `(\w+)` \| (\S*) ?\|", section, re.MULTILINE))
    fields = dict(HttpDestinationConfig.model_fields)
    del fields["type"]

    assert shown.keys() == fields.keys()
    for name, text in shown.items():
        default = fields[name].get_default()
        expected = (
            "" if fields[name].is_required() or not (default or default is False) else default
        )
        assert text.strip("`") == str(expected).lower().removesuffix(".0"), name


def test_the_statuses_that_end_a_pipeline_are_those_named() -> None:
    named = re.search(r"^\| 3xx, ([\d, ]+) \| ends", PAGE, re.MULTILINE)
    assert named is not None
    ends = {int(status) for status in named[1].split(",")} | {401, 403, 407, 409, 412, 429}

    for status in range(400, 500):
        is_of_table = isinstance(refusal(status, "POST x/events", "key", ORDERS), TableWriteFailed)
        assert is_of_table == (status not in ends) or status == 429, status
