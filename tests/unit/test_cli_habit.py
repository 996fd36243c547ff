"""One habit of all commands: how they ask, what they print, how they end."""

from __future__ import annotations

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
from etl_dagster.cli.failures import NotReady, explain
from etl_dagster.cli.listing import NAMES, few, some
from etl_dagster.errors import ConfigError, EtlError, SourceUnreachable

CHANGES, PRINTS = "changes something", "prints data"
#: What every command does. One that is not in here has not been asked about its habit.
COMMANDS: dict[str, frozenset[str]] = {
    "demo": frozenset(),
    "init": frozenset({CHANGES}),
    "doctor": frozenset({PRINTS}),
    "shape": frozenset({PRINTS}),
    "run": frozenset({PRINTS}),
    "status": frozenset({PRINTS}),
    "query": frozenset({PRINTS}),
    "odd": frozenset({PRINTS}),
    "retry": frozenset({CHANGES}),
    "repair": frozenset({CHANGES, PRINTS}),
    "resync": frozenset({CHANGES}),
    "reset": frozenset({CHANGES}),
    "pause": frozenset({CHANGES}),
    "resume": frozenset({CHANGES}),
    "move": frozenset({CHANGES}),
    "migrate": frozenset({CHANGES, PRINTS}),
    "lake maintain": frozenset({CHANGES, PRINTS}),
    "remove": frozenset({CHANGES, PRINTS}),
    "state list": frozenset({PRINTS}),
    "state get": frozenset({PRINTS}),
    "state history": frozenset({PRINTS}),
    "state diff": frozenset({PRINTS}),
    "state locks": frozenset({PRINTS}),
    # What it prints is a file for `meltano state import`, and JSON in any case.
    "state export": frozenset(),
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

    assert options(name) & {"--yes", "--dry-run", "--force"} == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_what_prints_data_prints_json(name: str) -> None:
    expected = {"--json"} if PRINTS in COMMANDS[name] else set()

    assert options(name) & {"--json", "--format", "--output-format"} == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    answer = CliRunner().invoke(cli, [*name.split(), "--help"])

    examples = [line for line in answer.output.splitlines() if line.startswith("  etl-dagster ")]
    assert any(line.startswith(f"  etl-dagster {name}") for line in examples), answer.output


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--all" in options(name)])
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
