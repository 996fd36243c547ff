"""The commands of docs/destinations/singer.md, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.database import Database
from tests.support.real_targets import real_target
from tests.support.waiting import PATIENCE_S

PAGE = (Path(__file__).parents[2] / "docs/destinations/singer.md").read_text("utf-8")


def test_the_first_load_of_the_page_works(newest_database: Database, tmp_path: Path) -> None:
    newest_database.execute(
        "create table orders (id bigint primary key, note text)",
        "insert into orders select n, 'note ' || n from generate_series(1, 100) n",
        "create publication etl_pub for table orders",
    )
    section = re.search(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    source = {"dsn": newest_database.dsn, "publication": "etl_pub"}
    (tmp_path / "etl.yaml").write_text(
        f"pipeline: shop\nsource: {json.dumps(source)}\n{section[1]}"
    )
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    install, *commands = [block.strip().splitlines() for block in blocks]
    # These two were run before, for all tests.
    assert [line.split()[-2:] for line in install] == [
        ["venv", "loaders/target-jsonl"],
        ["install", "target-jsonl"],
    ]
    (tmp_path / "loaders").mkdir()
    (tmp_path / "loaders/target-jsonl").symlink_to(real_target("target-jsonl").parents[1])

    for command in (line for block in commands for line in block):
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    lines = (tmp_path / "tables/public-orders.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == list(range(1, 101))
