"""The examples of the deployment guide hold: every file, unit and command that it shows."""

from __future__ import annotations

import configparser
import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dagster._cli import create_dagster_cli
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_webserver.cli import create_dagster_webserver_cli

from tests.support.doc_blocks import DOCS, block_with, blocks

PAGE = "guides/dagster-deployment.md"
COMMANDS = {
    "dagster": create_dagster_cli(),
    "dagster-daemon": create_dagster_daemon_cli(),
    "dagster-webserver": create_dagster_webserver_cli(),
}
#: Of Dagster's chart 1.13: the settings that the example uses, as `values.schema.json` has them.
IMAGE = {"repository": str, "tag": str, "pullPolicy": str}
TICKS = {"skipped": int, "success": int, "failure": int, "started": int}
THREADS = {"useThreads": bool, "numWorkers": int}
CHART: Mapping[str, Any] = {
    "dagster-user-deployments": {
        "deployments": [
            {
                "name": str,
                "image": IMAGE,
                "dagsterApiGrpcArgs": [str],
                "port": int,
                "envSecrets": [{"name": str}],
                "includeConfigInLaunchedRuns": {"enabled": bool},
            }
        ]
    },
    "runLauncher": {"type": str, "config": {"k8sRunLauncher": {"imagePullPolicy": str}}},
    "postgresql": {"postgresqlScheme": str},
    "dagsterDaemon": {
        "sensors": THREADS,
        "schedules": THREADS,
        "runMonitoring": {
            "enabled": bool,
            "startTimeoutSeconds": int,
            "pollIntervalSeconds": int,
            "freeSlotsAfterRunEndSeconds": int,
        },
    },
    "concurrency": {
        "enabled": bool,
        "runs": {"maxConcurrentRuns": int},
        "pools": {"defaultLimit": int, "granularity": str},
    },
    "retention": {
        "enabled": bool,
        "sensor": {"purgeAfterDays": TICKS},
        "schedule": {"purgeAfterDays": int},
    },
}


def require_command(line: str) -> None:
    """That a command of Dagster's exists, and takes these options."""
    program, *arguments = shlex.split(line)
    command: click.Command = COMMANDS[Path(program).name]
    while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        command = command.commands[arguments.pop(0)]
    assert not isinstance(command, click.Group) or command.invoke_without_command, line
    with contextlib.suppress(click.MissingParameter):  # where the text only names the command
        command.make_context(program, arguments)


def require_shape(value: Any, shape: Any, path: str = "values") -> None:
    """That a value has exactly these keys, and values of these types."""
    if isinstance(shape, Mapping):
        assert value.keys() == shape.keys(), path
        for key in shape:
            require_shape(value[key], shape[key], f"{path}.{key}")
    elif isinstance(shape, list):
        for item in value:
            require_shape(item, shape[0], f"{path}[]")
    else:
        assert type(value) is shape, path


def test_every_yaml_is_one_document_without_a_repeated_key() -> None:
    for text in blocks(PAGE, "yaml"):
        top = re.findall(r"^([\w-]+):", text, re.MULTILINE)
        assert len(top) == len(set(top))
        assert yaml.safe_load(text)


def test_the_commands_exist_and_take_the_options_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("workspace.yaml", "definitions.py"):
        (tmp_path / name).touch()
    page = (DOCS / PAGE).read_text("utf-8")
    shown = re.findall(
        r"(?:ExecStart=\S*/|`\.\.\./|command: |`)(dagster(?:-daemon|-webserver)? [^`\n]*)", page
    )
    assert {line.split()[0] for line in shown} == set(COMMANDS)
    assert len(shown) == 8, shown
    for line in shown:
        require_command(line.replace("/srv/etl/", ""))


def test_the_workspace_names_the_code_server_of_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "workspace.yaml"
    path.write_text(block_with(PAGE, "yaml", "workspace.yaml\nload_from"))
    (origin,) = location_origins_from_yaml_paths([str(path)])
    assert (origin.location_name, getattr(origin, "port", None)) == ("etl", 4000)
    assert "-p 4000" in block_with(PAGE, "ini", "dagster-code.service")


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = block_with(PAGE, "ini", "dagster-code.service")
    unit = configparser.RawConfigParser(strict=True)
    unit.read_string(text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    if (verify := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "dagster-code.service"
    # A program that exists: the user's does not, on this machine.
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    run = [verify, "--man=no", "verify", str(path)]
    found = subprocess.run(run, capture_output=True, text=True)
    assert [line for line in found.stderr.splitlines() if path.name in line] == []
    assert found.returncode == 0, found.stderr


def test_the_containers_are_one_image_and_keep_the_file_in_a_volume() -> None:
    compose = yaml.safe_load(block_with(PAGE, "yaml", "# compose.yaml"))
    known = {"build", "command", "environment", "ports", "restart", "stop_grace_period", "volumes"}
    for service in compose["services"].values():
        assert service.keys() <= known
        assert service["build"] == "."
        assert service["environment"]["DAGSTER_HOME"] == "/opt/dagster"
    (mount,) = compose["services"]["code"]["volumes"]
    assert mount.partition(":")[0] in compose["volumes"]


def test_the_charts_values_have_its_names_and_types() -> None:
    """An image without a pullPolicy, for one, is refused by the chart."""
    require_shape(yaml.safe_load(block_with(PAGE, "yaml", "# values.yaml")), CHART)
