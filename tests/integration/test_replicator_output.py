"""What a destination prints never gets between the replicator's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.database import Database

_MODULE = """
from typing import Literal
from etl_dagster.config import DestinationConfig
from etl_dagster.destinations.memory import MemoryDestination

class LoudConfig(DestinationConfig):
    type: Literal["loud"]

class LoudDestination(MemoryDestination):
    config_model = LoudConfig

    @classmethod
    def from_config(cls, config, pipeline):
        return cls()

    def startup(self, store):
        print("{noise", flush=True)
"""


def test_what_a_destination_prints_goes_to_the_log(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for table items"
    )
    info = tmp_path / "etl_loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: etl_loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[etl_dagster.destinations]\nloud = etl_loud:LoudDestination\n"
    )
    (tmp_path / "etl_loud.py").write_text(_MODULE)
    config = {
        "pipeline": "shop",
        "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
        "destination": {"type": "loud"},
    }
    with subprocess.Popen(
        [sys.executable, "-m", "etl_dagster.replicator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    ) as replicator:
        assert replicator.stdin is not None
        assert replicator.stdout is not None
        replicator.stdin.write(json.dumps({"config": config, "lease_s": 60}) + "\n")
        replicator.stdin.flush()
        while json.loads(replicator.stdout.readline()).get("phase") != "streaming":
            pass
        answers, log = replicator.communicate(timeout=60)

    assert json.loads(answers.splitlines()[-1]) == {"stopped": "the parent is gone"}
    assert "{noise" in log
