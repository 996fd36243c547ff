"""Finds a target: on PATH, by its path, or as a loader of a Meltano project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from etl_dagster.destinations.singer.config import SingerDestinationConfig, plain
from etl_dagster.destinations.singer.failures import TargetFailed, TargetMissing
from etl_dagster.destinations.singer.process import how_it_ended
from etl_dagster.destinations.singer.stderr import Tail, secrets_in
from etl_dagster.errors import DestinationError

#: How long a command may take that reports about the target, or its settings.
_COMMAND_S: Final = 60.0


@dataclass(frozen=True)
class Program:
    """A target that can be started."""

    #: For people.
    name: str
    path: str
    #: Its settings; they hold secrets.
    settings: Mapping[str, Any]
    env: Mapping[str, str]
    folder: Path | None = None
    #: What no message may hold, of its environment.
    env_secrets: frozenset[str] = frozenset()

    @property
    def secrets(self) -> set[str]:
        """What no message may hold."""
        return secrets_in(dict(self.settings)) | self.env_secrets


@dataclass(frozen=True, slots=True)
class About:
    """What a target reports about itself."""

    version: str = ""
    capabilities: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()


def find_program(config: SingerDestinationConfig) -> Program:
    """The target with its settings.

    Raises:
        TargetMissing: there is no such program.
        DestinationError: its settings can't be read.
    """
    given = {name: value.get_secret_value() for name, value in config.env.items()}
    env, secrets = dict(os.environ) | given, frozenset(given.values())
    # Timestamps with a zone are sent in UTC; libpq would otherwise take the machine's zone.
    env.setdefault("PGTZ", "UTC")
    settings = _settings_of_file(config.config_file)
    own = {name: plain(value) for name, value in config.config.items()}
    if config.project is None:
        return Program(
            config.target_name, _path_of(config.target), settings | own, env, env_secrets=secrets
        )
    folder = config.project.absolute()
    path, kept = _loader(config.target, folder, config.environment, env, secrets)
    return Program(config.target_name, path, kept | settings | own, env, folder, secrets)


def _path_of(target: str) -> str:
    path = os.path.expanduser(target)
    found = shutil.which(path)
    if found is not None:
        return os.path.abspath(found)
    if "/" in target:
        what = "can't be run" if os.path.exists(path) else "does not exist"
        raise TargetMissing(f"{path} {what}", solution="Correct destination.target.")
    raise TargetMissing(
        f"{target} is not on PATH",
        solution=f"Install it in an environment of its own, such as by `pipx install {target}`, or "
        "give its path as destination.target. MeltanoLabs' targets are called meltanolabs-"
        "target-... on PyPI.",
    )


def _settings_of_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not JSON"
        raise DestinationError(
            f"{path}: {what}", solution="Correct destination.config_file."
        ) from None
    if not isinstance(found, dict):
        raise DestinationError(
            f"{path} does not hold an object", solution="Correct destination.config_file."
        )
    return found


# -- Meltano -----------------------------------------------------------------------------------


def _loader(
    name: str,
    folder: Path,
    environment: str | None,
    env: Mapping[str, str],
    secrets: Collection[str],
) -> tuple[str, dict[str, Any]]:
    """The program of a loader, and the settings that Meltano would give it.

    It is started without Meltano, whose process would stand between us and its pipes.
    """
    meltano = shutil.which("meltano", path=env.get("PATH"))
    if meltano is None:
        raise TargetMissing(
            "meltano, which knows the loader's settings, is not on PATH",
            solution="Install it, or give the target's own path and settings without "
            "destination.project.",
        )
    if not (folder / "meltano.yml").is_file():
        raise TargetMissing(f"{folder} has no meltano.yml", solution="Correct destination.project.")
    chosen = ["--environment", environment] if environment is not None else []
    command = [meltano, *chosen, "invoke", "--dump=config", name]
    done = _run(command, env, folder)
    if done.returncode:
        tail = Tail(secrets)
        tail.feed(done.stderr)
        raise DestinationError(
            f"meltano invoke --dump=config {name} {how_it_ended(done.returncode)}; it printed:\n"
            f"{tail.text()}",
            solution=f"In {folder}, run `meltano install loader {name}` and the command itself.",
        )
    try:
        settings = json.loads(done.stdout)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise DestinationError(
            f"meltano invoke --dump=config {name} did not print a JSON object",
            solution=f"Run it in {folder}.",
        )
    return _loader_path(name, folder, env), settings


def _loader_path(name: str, folder: Path, env: Mapping[str, str]) -> str:
    """Where Meltano has installed the loader, by its name, its executable or what it inherits."""
    import yaml

    try:
        plugins = yaml.safe_load((folder / "meltano.yml").read_text("utf-8")).get("plugins") or {}
        loaders = {loader["name"]: loader for loader in plugins.get("loaders") or ()}
    except (OSError, ValueError, AttributeError, LookupError, TypeError, yaml.YAMLError):
        loaders = {}
    places, executables, known = [name], [], loaders.get(name)
    while known is not None:
        if executable := known.get("executable"):
            executables.append(str(executable))
        parent = known.get("inherit_from")
        known = loaders.pop(parent, None) if isinstance(parent, str) else None
        if isinstance(parent, str):
            places.append(parent)
    for executable in [*executables, *places]:
        if "/" in executable:
            return _path_of(str(folder / executable))
        for place in places:
            venv = folder / ".meltano" / "loaders" / place / "venv" / "bin" / executable
            if venv.is_file():
                return str(venv)
        # Meltano keeps variants by hash below the same folder in later versions.
        for place_found in sorted(
            (folder / ".meltano" / "loaders").glob(f"*/venv/bin/{executable}")
        ):
            return str(place_found)
    for executable in executables:
        if (found := shutil.which(executable, path=env.get("PATH"))) is not None:
            return found
    raise TargetMissing(
        f"the loader {name} is not installed in {folder}",
        solution=f"In that folder: `meltano install loader {name}`.",
    )


# -- what it reports about itself ----------------------------------------------------------------


def about(program: Program) -> About | None:
    """What `--about` says; None if the target doesn't support that."""
    try:
        done = _run([program.path, "--about", "--format=json"], program.env, program.folder)
        said = json.loads(done.stdout) if done.returncode == 0 else None
    except (TargetFailed, ValueError):
        return None
    if not isinstance(said, dict):
        return None
    settings = said.get("settings")
    names = settings.get("properties") if isinstance(settings, dict) else None
    return About(
        str(said.get("version") or ""),
        frozenset(map(str, said.get("capabilities") or ())),
        frozenset(names if isinstance(names, dict) else ()),
    )


def _run(
    command: list[str], env: Mapping[str, str], folder: Path | None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TargetFailed(
            f"{Path(command[0]).name} {' '.join(command[1:])} took longer than {_COMMAND_S:g} s"
        ) from None
    except OSError as error:
        raise TargetMissing(
            f"{command[0]} can't be run: {error.strerror}",
            solution="Check destination.target and the rights of that file.",
        ) from None
