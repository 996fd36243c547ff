"""The commands, and how failures end them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import click

from etl_dagster import __version__
from etl_dagster.cli.demo import demo
from etl_dagster.cli.doctor import doctor
from etl_dagster.cli.failures import INTERRUPTED, explain
from etl_dagster.cli.init import init
from etl_dagster.cli.lake import lake
from etl_dagster.cli.leaving import open_standard_streams, run_to_the_end
from etl_dagster.cli.migrate import migrate
from etl_dagster.cli.move import move
from etl_dagster.cli.odd import odd
from etl_dagster.cli.pause import pause, resume
from etl_dagster.cli.query import query
from etl_dagster.cli.remove import remove
from etl_dagster.cli.repair import repair
from etl_dagster.cli.reset import reset
from etl_dagster.cli.resync import resync
from etl_dagster.cli.retry import retry
from etl_dagster.cli.run import run
from etl_dagster.cli.shape import shape
from etl_dagster.cli.state import state
from etl_dagster.cli.status import status
from etl_dagster.cli.stopping import end_when_asked

_EPILOG = """\b
First steps:
  etl-dagster demo      see it work, on a Postgres of its own
  etl-dagster init      write an etl.yaml for your Postgres
  etl-dagster doctor    see what is missing, and what to do
  etl-dagster run       copy and stream until you press Ctrl-C

\b
A command that changes something shows what, and asks. --yes skips the question, and is
needed without a terminal; --dry-run only shows. --json prints JSON; of a stream, one
object on each line. --all means everything: all names, or the whole of a long list.

\b
Exit codes:
  0         done
  1         failed while it ran, or found problems (doctor: an error; repair
            --dry-run: a difference), or the answer to a question was no
  2         called or configured wrongly; nothing was changed
  130, 143  stopped by Ctrl-C, by SIGTERM or SIGHUP, before the goal was reached
"""


#: The commands by task, in the order in which people need them.
GROUPS: Mapping[str, tuple[click.Command, ...]] = {
    "First steps": (demo, init, doctor, shape),
    "Run and look": (run, status, query, odd),
    "Single tables": (retry, repair, resync, reset, pause, resume, move),
    "Upkeep": (migrate, lake, remove),
    "Meltano": (state,),
}


class _Commands(click.Group):
    """Lists its commands in groups, and explains a failure instead of showing a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{c.name:<{width}}", c.get_short_help_str(80)) for c in commands]
                )

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except OSError as error:  # help that can't be printed
            raise SystemExit(explain(error)) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except click.Abort as error:
            # Ctrl-C at a question. Any other abort is the answer no.
            if isinstance(error.__context__, KeyboardInterrupt):
                click.echo(err=True)
                ctx.exit(INTERRUPTED)
            raise
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            ctx.exit(explain(error))


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="etl-dagster")
@click.option("--debug", is_flag=True, help="Log everything, and show tracebacks.")
def cli(debug: bool) -> None:
    """Copy a Postgres publication to a destination and keep it in step, change by change.

    The destination is a DuckDB file, another Postgres, a DuckLake, anything that dlt or a Singer
    target can load, an HTTP service, or one that an installed package brings. All commands but
    demo and init read etl.yaml in the current folder, or what -c or the environment variable
    ETL_DAGSTER_CONFIG names.
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        click.get_current_context().color = False


for commands in GROUPS.values():
    for command in commands:
        cli.add_command(command)


def main() -> NoReturn:
    """The entry point of the package; ends the process."""
    open_standard_streams()
    end_when_asked()
    run_to_the_end(partial(cli, prog_name="etl-dagster"))
