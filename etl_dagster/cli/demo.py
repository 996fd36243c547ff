"""`etl-dagster demo`: everything at once, on a Postgres of its own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Postgres with data, a workload and Dagster; Ctrl-C stops all.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=50.0,
    show_default=True,
    help="Changes a second that the workload makes in the source.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Where Dagster's UI listens.  [default: 3000, or the next free one]",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where the demo keeps its data; delete it to start over.",
)
def demo(rate: float, port: int | None, folder: Path) -> None:
    """Run a Postgres with flight data, a live workload and Dagster; Ctrl-C stops all of it.

    Needs the extra: pip install 'etl-dagster[demo]'.

    \b
    etl-dagster demo --rate 200 --port 3001
    """
    from etl_dagster.demo.app import run_demo

    run_demo(folder, rate=rate, port=port)
