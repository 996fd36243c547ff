#!/usr/bin/env python3
"""A Singer target that keeps nothing, and gives each STATE back at once."""

import json
import sys

if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "STATE":
            print(json.dumps(message["value"]), flush=True)
