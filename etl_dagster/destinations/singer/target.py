"""The target as it is configured: it is found once, and started for each run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path

from etl_dagster.destinations.singer.config import SingerDestinationConfig
from etl_dagster.destinations.singer.process import TargetProcess
from etl_dagster.destinations.singer.programs import About, Program, about, find_program
from etl_dagster.destinations.singer.session import STOP_GRACE_S, TargetSession
from etl_dagster.destinations.singer.stderr import Tail
from etl_dagster.errors import DestinationError

#: Without it, targets of the SDK drop `_sdc_deleted_at` and take a deleted row for an updated one.
_METADATA = "add_record_metadata"
#: Settings by which a target of the SDK may be told to ignore ACTIVATE_VERSION.
_IGNORES = ("activate_version", "process_activate_version_messages")


class SingerTarget:
    """Starts the target with its settings in a file that only this user can read."""

    def __init__(
        self, config: SingerDestinationConfig, *, stop_grace_s: float = STOP_GRACE_S
    ) -> None:
        self._config = config
        self._stop_grace_s = stop_grace_s
        self._lock = threading.Lock()
        self._found: tuple[Program, About | None] | None = None
        self._settings_file: Path | None = None
        self._remove: weakref.finalize | None = None  # type: ignore[type-arg]
        #: Names of streams and columns, which messages may show.
        self.names: set[str] = {config.target_name}

    def look(self) -> tuple[Program, About | None]:
        """The program, and what it says of itself.

        Raises:
            DestinationError: it isn't there, or its settings are wrong.
        """
        with self._lock:
            if self._found is None:
                program = find_program(self._config)
                said = about(program)
                self._found = _with_metadata(program, said), said
            return self._found

    @property
    def empties(self) -> bool:
        """Whether it acts on ACTIVATE_VERSION."""
        if self._config.activate_version is not None:
            return self._config.activate_version
        program, said = self.look()
        if any(program.settings.get(name) is False for name in _IGNORES):
            return False
        return said is not None and "activate-version" in said.capabilities

    @property
    def removes(self) -> bool:
        """Whether it is told to remove deleted rows."""
        program, _ = self.look()
        return program.settings.get("hard_delete") is True

    def start(self, alone: bool) -> TargetSession:
        """Start it.

        Raises:
            DestinationError: it can't be run.
        """
        program, _ = self.look()
        tail = Tail(program.secrets)
        tail.know(self.names)
        command = [program.path, "--config", str(self._written(program))]
        process = TargetProcess(command, program.env, program.folder)
        return TargetSession(
            process,
            program.name,
            tail,
            flush_after_s=self._config.flush_after_seconds,
            stalled_after_s=self._config.stalled_after_seconds,
            on_stderr=None if self._config.stderr_file is None else self._keep_stderr,
            alone=alone,
            stop_grace_s=self._stop_grace_s,
        )

    def _written(self, program: Program) -> Path:
        """The file with its settings."""
        with self._lock:
            if self._settings_file is None:
                folder = tempfile.mkdtemp(prefix="etl_dagster_singer_")
                self._remove = weakref.finalize(self, shutil.rmtree, folder, True)
                path = Path(folder) / "config.json"
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    json.dump(dict(program.settings), file)
                self._settings_file = path
            return self._settings_file

    def _keep_stderr(self, data: bytes) -> None:
        path = self._config.stderr_file
        assert path is not None
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with open(os.open(path, flags, 0o600), "ab") as file:
                file.write(data)

    def close(self) -> None:
        """Remove the file with its settings; idempotent."""
        with self._lock:
            self._settings_file = None
            if self._remove is not None:
                self._remove()


def _with_metadata(program: Program, said: About | None) -> Program:
    if said is None or _METADATA not in said.settings:
        return program
    given = program.settings.get(_METADATA)
    if given is False:
        raise DestinationError(
            f"{program.name} has {_METADATA}: false, and then takes a deleted row for one whose "
            "values are all null",
            solution=f"Set {_METADATA}: true in destination.config, or leave it out.",
        )
    return replace(program, settings={**program.settings, _METADATA: True})
