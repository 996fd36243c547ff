"""How a target is found, and the error if Meltano doesn't know it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from etl_dagster.destinations.singer.config import SingerDestinationConfig
from etl_dagster.destinations.singer.programs import find_program
from etl_dagster.errors import DestinationError
from tests.support.leaks import make_secret


def test_what_meltano_printed_is_shown_without_secrets(tmp_path: Path) -> None:
    secret = make_secret()
    meltano = tmp_path / "meltano"
    meltano.write_text('#!/bin/sh\necho "no loader here" >&2\necho "sent $GIVEN" >&2\nexit 1\n')
    meltano.chmod(0o755)
    (tmp_path / "meltano.yml").touch()
    config = SingerDestinationConfig(
        type="singer",
        target="target-x",
        project=tmp_path,
        env={"PATH": SecretStr(str(tmp_path)), "GIVEN": SecretStr(secret)},
    )

    with pytest.raises(DestinationError) as caught:
        find_program(config)

    assert caught.value.reason == (
        "meltano invoke --dump=config target-x ended with exit code 1; it printed:\n"
        "no loader here\nsent ***"
    )
