"""Reading states from elsewhere, where a package for that is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from etl_dagster.integrations.meltano.states.errors import StateStorageError
from etl_dagster.integrations.meltano.states.sources import read_states

pytest.importorskip("meltano")


@pytest.mark.parametrize(
    ("source", "module", "command"),
    [
        ("s3://bucket/prefix", "boto3", "pip install 'meltano[s3]'"),
        ("gs://bucket/prefix", "google.api_core", "pip install 'meltano[gcs]'"),
        ("azure://container/prefix", "azure", "pip install 'meltano[azure]'"),
        ("mysql://user@host/meltano", "MySQLdb", "pip install mysqlclient"),
        ("mysql+pymysql://user@host/meltano", "pymysql", "pip install pymysql"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    source: str, module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As if it were not installed, also where it is.
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("meltano.core.state_store.")]:
        if name.endswith(".backend"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(StateStorageError, match="which is not installed here") as missing:
        read_states(source)
    assert module.partition(".")[0] in missing.value.reason
    assert missing.value.solution.endswith(command)
