"""A process that writes something and is killed at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_NOT_MADE = 77


def note_and_die(suite: Any, folder: Path, key: str, note: Mapping[str, Any]) -> int | None:
    """Have another process make the store, put the note and kill itself; returns its exit code.

    Args:
        suite: the object of the test class, whose `make_store` makes the store. It is pickled with
            its attributes, for the other process.
    """
    try:
        made = pickle.dumps((suite, folder))
    except Exception as error:
        pytest.skip(
            f"{type(suite).__name__} can't be pickled for another process: {error}. Define it at "
            "the top of its module, with attributes that can be pickled"
        )
    # Not a fork: the copy of a process with threads may hang.
    process = multiprocessing.get_context("spawn").Process(
        target=_note_and_die, args=(made, key, note), daemon=True
    )
    process.start()
    process.join(suite.patience_s)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(
            f"another process took longer than {suite.patience_s} s to make the store and write a "
            "note. If it is only slow, set a larger `patience_s` in the test class"
        )
    if process.exitcode == _NOT_MADE:
        pytest.skip(f"another process can't import the module of {type(suite).__name__}")
    return process.exitcode


def _note_and_die(made: bytes, key: str, note: Mapping[str, Any]) -> None:
    try:
        suite, folder = pickle.loads(made)
    except ImportError:
        os._exit(_NOT_MADE)
    suite.make_store(folder).put_note(key, note)
    os.kill(os.getpid(), signal.SIGKILL)
