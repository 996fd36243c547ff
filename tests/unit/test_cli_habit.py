"""One habit of all commands: how they ask, what they print, how they end."""

from __future__ import annotations

import inspect
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from etl_dagster.cli.app import GROUPS, cli
from etl_dagster.cli.confirming import is_wanted, require_decided
from etl_dagster.cli.failures import NotReady, RunFailed, explain
from etl_dagster.cli.listing import NAMES, few, one_by_one, print_table, some
from etl_dagster.errors import ConfigError, EtlError, SourceUnreachable

CHANGES, PRINTS, ALL = "changes something", "prints data", "names or shows all"
#: What every command does. A new command fails the tests until it is in here, and then has to
#: keep the habit.
COMMANDS: dict[str, frozenset[str]] = {
    "demo": frozenset(),
    "init": frozenset({CHANGES}),
    "doctor": frozenset({PRINTS, ALL}),
    "shape": frozenset({PRINTS, ALL}),
    "run": frozenset({PRINTS}),
    "status": frozenset({PRINTS, ALL}),
    "query": frozenset({PRINTS}),
    "odd": frozenset({PRINTS, ALL}),
    "retry": frozenset({CHANGES, ALL}),
    "repair": frozenset({CHANGES, PRINTS, ALL}),
    "resync": frozenset({CHANGES}),
    "reset": frozenset({CHANGES, ALL}),
    "pause": frozenset({CHANGES}),
    "resume": frozenset({CHANGES}),
    "move": frozenset({CHANGES}),
    "migrate": frozenset({CHANGES, PRINTS}),
    "lake maintain": frozenset({CHANGES, PRINTS}),
    "remove": frozenset({CHANGES, PRINTS}),
    "state list": frozenset({PRINTS, ALL}),
    "state get": frozenset({PRINTS}),
    "state history": frozenset({PRINTS, ALL}),
    "state diff": frozenset({PRINTS, ALL}),
    "state locks": frozenset({PRINTS, ALL}),
    "state export": frozenset({PRINTS}),
    "state restore": frozenset({CHANGES}),
    "state clear": frozenset({CHANGES}),
    "state import": frozenset({CHANGES}),
}


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


FOUND = dict(leaves(cli))


def options(name: str) -> set[str]:
    return {text for parameter in FOUND[name].params for text in parameter.opts}


def test_the_habit_of_every_command_is_known() -> None:
    assert FOUND.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_what_changes_something_asks_and_can_be_tried(name: str) -> None:
    expected = {"--yes", "--dry-run"} if CHANGES in COMMANDS[name] else set()
    spellings = {"-y", "-n", "-f", "--force", "--no-input", "--assume-yes", "--confirm", "--try"}

    assert options(name) & {"--yes", "--dry-run", *spellings} == expected


@pytest.mark.parametrize("name", [name for name in COMMANDS if CHANGES in COMMANDS[name]])
def test_what_changes_something_asks_in_the_one_way(name: str) -> None:
    callback = FOUND[name].callback
    assert callback is not None
    source = inspect.getsource(sys.modules[callback.__module__])

    assert "is_wanted(" in source
    assert "click.confirm" not in source
    assert "click.prompt" not in source


@pytest.mark.parametrize("name", [n for n in COMMANDS if {CHANGES, PRINTS} <= COMMANDS[n]])
def test_json_of_what_changes_something_needs_a_decision(name: str) -> None:
    named = ["--all"] if name == "repair" else []

    answer = CliRunner().invoke(cli, [*name.split(), *named, "--json"])

    assert answer.exit_code == 2
    assert "--json goes with --yes or --dry-run" in answer.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_what_prints_data_prints_json(name: str) -> None:
    expected = {"--json"} if PRINTS in COMMANDS[name] else set()

    spellings = {"--format", "--output-format", "--as-json", "--jsonl", "--json-lines", "-j"}
    assert options(name) & {"--json", *spellings} == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    answer = CliRunner().invoke(cli, [*name.split(), "--help"])

    examples = [line for line in answer.output.splitlines() if line.startswith("  etl-dagster ")]
    assert any(line.startswith(f"  etl-dagster {name}") for line in examples), answer.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for parameter in FOUND[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_what_names_or_shows_many_has_all(name: str) -> None:
    expected = {"--all"} if ALL in COMMANDS[name] else set()

    # A command that shows the first of many has a way to see all of them.
    assert options(name) & {"--all", "-a", "--full", "--everything"} == expected
    assert "--limit" not in options(name) or ALL in COMMANDS[name]


@pytest.mark.parametrize("name", [name for name in COMMANDS if ALL in COMMANDS[name]])
def test_all_is_a_flag_that_means_all_there_is(name: str) -> None:
    [option] = [p for p in FOUND[name].params if "--all" in p.opts]

    assert isinstance(option, click.Option)
    assert option.is_flag
    assert (option.help or "").startswith("All ")


def test_every_command_is_in_one_group_of_the_help() -> None:
    grouped = [command for commands in GROUPS.values() for command in commands]

    assert sorted(c.name or "" for c in grouped) == sorted(cli.commands)
    output = CliRunner().invoke(cli, ["--help"]).output
    assert [heading for heading in GROUPS if f"\n{heading}:\n" not in output] == []


# -- asking --------------------------------------------------------------------------------------


def test_without_a_terminal_and_without_yes_nothing_is_done() -> None:
    with CliRunner().isolation(), pytest.raises(click.UsageError, match="Use --yes to do it"):
        is_wanted(dry_run=False, yes=False)
    assert is_wanted(dry_run=False, yes=True)


def test_an_answer_from_a_pipe_is_not_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with CliRunner().isolation(input="y\n"), pytest.raises(click.UsageError, match="no terminal"):
        is_wanted(dry_run=False, yes=False)


def test_json_leaves_no_room_for_a_question() -> None:
    with pytest.raises(click.UsageError, match="--json goes with --yes or --dry-run"):
        require_decided(as_json=True, dry_run=False, yes=False)


# -- long lists ----------------------------------------------------------------------------------


def test_of_a_thousand_names_ten_are_printed_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"t{number}" for number in range(1000)]

    assert some(names) == ", ".join(names[:NAMES]) + " and 990 more"
    assert list(few(names, full="--all")) == names[:NAMES]
    assert capsys.readouterr().out == "... and 990 more; --all shows all\n"


def test_a_name_is_one_line_and_many_names_are_one_line_together() -> None:
    assert one_by_one(["a", "b"]) == ["a", "b"]
    assert one_by_one([f"t{n}" for n in range(12)]) == [
        "t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 and 2 more"
    ]


def test_without_a_terminal_a_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However wide it is: `grep` reads lines."""
    from rich.table import Table

    table = Table()
    table.add_column("name")
    table.add_row("x " * 300)
    print_table(table)

    assert "x " * 300 in capsys.readouterr().out


# -- how they end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["source: is required"]), 2),
        (SourceUnreachable("the source does not answer"), 1),
        (NotReady([SourceUnreachable("one"), SourceUnreachable("two")]), 1),
        (NotReady([SourceUnreachable("one"), EtlError("two")]), 2),
    ],
)
def test_only_what_waiting_may_cure_ends_with_1(error: EtlError, code: int) -> None:
    assert explain(error) == code


def test_a_reader_that_has_enough_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As `| head` has; the exit code is that of whatever could not finish."""
    assert explain(BrokenPipeError(32, "Broken pipe")) == 1
    assert explain(RunFailed(BrokenPipeError(32, "Broken pipe"))) == 1
    assert capsys.readouterr().err == ""


def test_what_the_system_refuses_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(PermissionError(13, "Permission denied", "/srv/etl.duckdb")) == 1
    assert "Error: /srv/etl.duckdb: Permission denied\n" in capsys.readouterr().err


def test_output_that_cannot_be_written_ends_with_1_and_the_reason() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "etl_dagster.cli", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: No space left on device\n")
    assert "Traceback" not in ended.stderr


def test_no_file_takes_the_place_of_a_standard_stream_that_is_closed(tmp_path: Path) -> None:
    """What is printed would end up in it."""
    path = tmp_path / "etl.yaml"
    program = [sys.executable, "-m", "etl_dagster.cli", "init", "-o", str(path)]

    ended = subprocess.run(f"{shlex.join(program)} <&- >&- 2>&-", shell=True)

    assert ended.returncode == 0
    assert path.read_text().startswith("# A pipeline of etl-dagster")


_WAITING = """
import sys, time, click
from etl_dagster.cli.app import cli, main
@cli.command()
def wait():
    print("waits", flush=True)
    time.sleep(60)
sys.argv[1:] = ["wait"]
main()
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_command_that_is_stopped_ends_with_the_code_of_its_signal(
    sent: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(sent)
        _, err = process.communicate(timeout=20)

    assert process.returncode == code, err
    assert "Traceback" not in err


def test_ctrl_c_at_a_question_is_not_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    path = tmp_path / "etl.yaml"
    path.write_text("mine")
    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    monkeypatch.setattr("sys.stdin", _Terminal())

    with pytest.raises(SystemExit) as ended:
        cli(["init", "-o", str(path)], prog_name="etl-dagster")

    assert (ended.value.code, path.read_text()) == (130, "mine")


class _Terminal:
    def isatty(self) -> bool:
        return True
