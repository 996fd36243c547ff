"""One `meltano run` of an extractor and a loader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster_meltano.logs import (
    LogLine,
    MetricsTally,
    StreamCount,
    parse_line,
)
from etl_dagster.integrations.dagster_meltano.process import follow
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoProject

_ERRORS_SHOWN = 5
_ALREADY_RUNNING = re.compile(r"Another '.*' pipeline is already running")


class MeltanoRunFailed(MeltanoError):
    """Meltano ended with an error. States written until then stay."""

    def __init__(self, reason: str, exit_code: int, *, solution: str | None = None) -> None:
        super().__init__(reason, solution=solution)
        self.exit_code = exit_code


class StateNotWritten(MeltanoRunFailed):
    """Meltano ended with exit code 0, although a state could not be written.

    It only logs the error if the write fails while the plugins end.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            reason,
            exit_code=0,
            solution="Correct what the backend reports, and run it again. It begins at the last "
            "state that was written, so records that were loaded since then are loaded again.",
        )


@dataclass(frozen=True)
class MeltanoRun:
    """What a successful run reported."""

    run_id: str | None
    #: By stream; empty where the extractor writes no Singer metrics.
    streams: dict[str, StreamCount]
    duration_s: float | None
    warnings: int


@dataclass(frozen=True)
class RunOptions:
    """How to run; each field is an option or a setting of Meltano."""

    run_id: str | None = None
    full_refresh: bool = False
    refresh_catalog: bool = False
    state_id_suffix: str | None = None
    #: Only these streams; empty for all those that the project selects.
    select_filter: Sequence[str] = ()

    def arguments(self, extractor: str, loader: str) -> list[str]:
        """There is never ``--force``: it would let two runs of one state overwrite each other."""
        options = ["run"]
        if self.run_id is not None:
            options.append(f"--run-id={self.run_id}")
        if self.full_refresh:
            options.append("--full-refresh")
        if self.refresh_catalog:
            options.append("--refresh-catalog")
        if self.state_id_suffix is not None:
            options.append(f"--state-id-suffix={self.state_id_suffix}")
        if self.select_filter:
            # Streams that are left out must not lose their bookmarks.
            options.append("--state-strategy=merge")
        return [*options, extractor, loader]

    def variables(self, extractor: str) -> dict[str, str]:
        variables = {"MELTANO_CLI_LOG_FORMAT": "json"}
        if self.select_filter:
            name = re.sub(r"[^A-Za-z0-9]", "_", extractor).upper()
            variables[f"{name}__SELECT_FILTER"] = json.dumps(list(self.select_filter))
        return variables


def run_meltano(
    project: MeltanoProject,
    extractor: str,
    loader: str,
    options: RunOptions,
    *,
    on_log: Callable[[LogLine], None],
    require: Callable[[], None] = lambda: None,
    grace_s: float = 60.0,
) -> MeltanoRun:
    """Run the pair to its end.

    Args:
        on_log: called with each line of the log, without the project's own secrets.
        require: called several times a second; what it raises ends the run, with SIGTERM.
        grace_s: how long Meltano may take to end then.

    Raises:
        MeltanoRunFailed: it ended with an error, or lost a state without one.
        MeltanoNotFound: there is nothing to run.
    """
    project.require()
    tally = MetricsTally()
    remove_secrets = project.secret_remover()

    def hear(line: str) -> None:
        entry = parse_line(line)
        if entry is not None:
            # In the text and not in the line, where JSON may have escaped a secret.
            entry = replace(entry, text=remove_secrets(entry.text))
            tally.add(entry)
            on_log(entry)

    code = follow(
        project.command(*options.arguments(extractor, loader)),
        folder=project.folder,
        environ=project.environ(options.variables(extractor)),
        on_line=hear,
        require=require,
        grace_s=grace_s,
    )
    if code != 0:
        raise _failure(extractor, loader, code, tally)
    if tally.unwritten is not None:
        raise StateNotWritten(
            f"`meltano run {extractor} {loader}` ended with exit code 0, but not every state was "
            f"written: {tally.unwritten}"
        )
    return MeltanoRun(options.run_id, tally.streams, tally.duration_s, tally.warnings)


def _failure(extractor: str, loader: str, code: int, tally: MetricsTally) -> MeltanoRunFailed:
    words = "\n".join(tally.errors[-_ERRORS_SHOWN:]) or "it did not report why"
    solution = None
    if _ALREADY_RUNNING.search(words):
        solution = (
            "Wait for the other run. If it was killed, Meltano takes it to be running until its "
            "last heartbeat is five minutes old; then another run can start."
        )
    return MeltanoRunFailed(
        f"`meltano run {extractor} {loader}` ended with exit code {code}: {words}",
        code,
        solution=solution,
    )


def state_id(environment: str, extractor: str, loader: str, suffix: str | None = None) -> str:
    """The state ID that `meltano run` uses.

    Raises:
        EtlError: a part holds a colon, which Meltano refuses.

    Source: meltano.core.block.extract_load.generate_state_id.
    """
    parts: list[Any] = [environment, f"{extractor}-to-{loader}", suffix]
    if any(":" in part for part in parts if part):
        raise EtlError(
            "a state ID can't contain names with a colon",
            solution="Choose an environment, plugin names and a state_id_suffix without one.",
        )
    return ":".join(part for part in parts if part)
