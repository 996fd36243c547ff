"""A Singer target that appends records to a file of JSON lines for each stream.

``python -m etl_dagster.demo.meltano.target`` stands for any loader of Meltano's hub. The folder is
the setting ``folder``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO


def load(lines: Iterable[str], folder: Path) -> Iterator[str]:
    """Write the records; yields each STATE once the records before it are in their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, IO[str]] = {}
    with ExitStack() as opened:
        for line in lines:
            message = json.loads(line)
            if message["type"] == "RECORD":
                name = message["stream"]
                if name not in files:
                    path = folder / f"{name}.jsonl"
                    files[name] = opened.enter_context(path.open("a", encoding="utf-8"))
                files[name].write(json.dumps(message["record"]) + "\n")
            elif message["type"] == "STATE":
                for file in files.values():
                    file.flush()
                yield json.dumps(message["value"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="target-lines")
    parser.add_argument("--config")
    config = json.loads(Path(parser.parse_args().config).read_text("utf-8"))
    for state in load(sys.stdin, Path(config["folder"])):
        print(state, flush=True)


if __name__ == "__main__":
    main()
