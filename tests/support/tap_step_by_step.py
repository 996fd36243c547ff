#!/usr/bin/env python3
"""A Singer tap of three records; it waits for a signal before the first and the second.

Its configuration (``folder``) names where it looks for ``begin`` and ``continue``, and leaves
``started``.
"""

import json
import sys
import time
from pathlib import Path


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--discover" in arguments:
        print(json.dumps({"streams": []}))
        sys.exit()
    settings = json.loads(Path(arguments[arguments.index("--config") + 1]).read_text())
    folder = Path(settings["folder"])
    gates = {1: folder / "begin", 2: folder / "continue"}
    (folder / "started").touch()
    properties = {"id": {"type": "integer"}}
    say(type="SCHEMA", stream="steps", schema={"properties": properties}, key_properties=["id"])
    deadline = time.monotonic() + 60
    for step in (1, 2, 3):
        while step in gates and not gates[step].exists():
            if time.monotonic() > deadline:
                sys.exit("it was not told to continue")
            time.sleep(0.02)
        say(type="RECORD", stream="steps", record={"id": step})
        say(type="STATE", value={"bookmarks": {"steps": {"id": step}}})
