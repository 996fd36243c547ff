"""Every page of the documentation, followed: commands typed, code run, settings read.

A page is followed block by block in an empty folder, against one Postgres that answers under
every address that the pages name. What is not run here is in one of two lists: `HELD`, with the
test that runs it, and `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import yaml
from dagster import validate_run_config

import etl_dagster
from etl_dagster import EtlPipelineComponent
from etl_dagster.config import load_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.integrations.meltano.settings import POSTGRES
from etl_dagster.integrations.meltano.states.uri import locate
from etl_dagster.kinds import DESTINATIONS, STORES
from tests.support.database import Database
from tests.support.pages import REPOSITORY, Block, Terminal, blocks_of

pytestmark = pytest.mark.slow

PAGES: Final = [
    str(path.relative_to(REPOSITORY))
    for folder in (".", "docs/**", "examples/**", "etl_dagster")
    for path in sorted(REPOSITORY.glob(f"{folder}/*.md"))
    # Tutorials are followed with what they show, by tests/acceptance/test_tutorials.py.
    if ".venv" not in path.parts and path.parent.name != "tutorials"
]

#: Test files that run blocks of a page: those of a language, or that begin with a text.
HELD: Final[dict[str, dict[str, list[str]]]] = {
    "docs/destinations/dlt.md": {
        "tests/integration/test_dlt_pipeline.py": ["export DESTINATION__POSTGRES__CREDENTIALS"]
    },
    "docs/destinations/http.md": {
        "tests/unit/test_http_docs.py": ["json", "python", "Etl-Signature"]
    },
    "docs/destinations/singer.md": {"tests/integration/test_singer_docs.py": ["sh"]},
    "docs/explanation/events.md": {"tests/acceptance/test_docs.py": ["pycon"]},
    "docs/explanation/schema-changes.md": {"tests/acceptance/test_docs.py": ["pycon"]},
    "docs/guides/dagster-components.md": {
        "tests/integration/test_dagster_component.py": ["pip install", "dg utils"]
    },
    "docs/guides/dagster-deployment.md": {
        "tests/unit/test_deployment_docs.py": ["ini", "# /srv", "# compose", "# values"],
        "tests/integration/test_deployment_docs.py": ["storage:"],
    },
    "docs/guides/ducklake.md": {
        "tests/ducklake/test_guide.py": ["SELECT", "FROM", "etl-dagster lake maintain"]
    },
    "docs/guides/history.md": {"tests/unit/test_history_page.py": ["sql"]},
    "docs/guides/postgres-destination.md": {
        "tests/integration/test_postgres_destination.py": ["sql"]
    },
    "docs/guides/several-destinations.md": {"tests/integration/test_fan_out_cli.py": ["bash"]},
    "docs/guides/shape-tables.md": {
        "tests/unit/test_shaping_rows.py": ["console", "import pyarrow"]
    },
    "docs/meltano/positions.md": {"tests/acceptance/test_meltano_example.py": ["$ meltano"]},
    "docs/reference/testing.md": {
        "tests/conformance/test_testing_page.py": ["python", "$ pytest"],
    },
    "examples/dagster_project/README.md": {
        "tests/integration/test_dagster_component.py": ["dg scaffold"],
        "tests/acceptance/test_dagster_project.py": ["cd examples/dagster_project"],
    },
    "examples/etl_files/README.md": {
        "tests/acceptance/test_own_package.py": ["pip install", "from pathlib"]
    },
    "examples/meltano/README.md": {"tests/acceptance/test_meltano_example.py": ["sh"]},
}
_BUILDS = "makes the environment that this test runs in, or runs all tests"
_DEV = "runs until it is stopped; tests/acceptance/test_tutorials.py runs one"
_DEMO = "runs until it is stopped; tests/acceptance/test_demo.py runs it"
#: Why blocks, of a language or that begin with a text, can't be run here.
NOT_RUN: Final[dict[str, dict[str, str]]] = {
    "CONTRIBUTING.md": {"git clone": _BUILDS, ".venv/bin/python": _BUILDS, "make": _BUILDS},
    "README.md": {"make": _BUILDS, "dagster dev": _DEV},
    "docs/destinations/singer.md": {"SELECT": "asks a loader's tables, whatever they are in"},
    "docs/guides/dagster-components.md": {"export SHOP_DSN": "dg dev " + _DEV},
    "docs/guides/dagster-deployment.md": {
        "DELETE FROM event_logs": "asks Dagster's own tables",
    },
    "docs/guides/monitoring.md": {"$ etl-dagster status --watch": "needs a terminal, until Ctrl-C"},
    "docs/index.md": {"pip install 'etl-dagster[demo]'": _DEMO},
    "docs/meltano/state-backend.md": {
        "export MELTANO": "needs a Meltano project; tests/integration/test_meltano_cli.py has one",
        "etl-dagster state import": "reads other places, such as MySQL and S3",
    },
}
CONFIGURATION: Final = """\
pipeline: shop
source: {dsn: postgresql://etl@localhost/shop, publication: etl_pub}
destination: {type: duckdb, path: shop.duckdb}
"""
TABLES: Final = """
    create table customers (id bigint primary key, note text);
    create table orders (id bigint primary key, amount numeric(12, 2), due_at date);
    create table payments (id bigint primary key, amount numeric(12, 2), note text);
    create table events (id bigint primary key, kind text);
    insert into customers select i, 'a' from generate_series(1, 3) i;
    insert into orders select i, i from generate_series(1, 5) i;
    insert into payments values (17, 'NaN', 'invoice');
"""
ROLE: Final = """
    create role etl login replication password '...';
    alter database shop owner to etl;
    alter schema public owner to etl;
    alter table customers owner to etl;
    alter table orders owner to etl;
    alter table payments owner to etl;
    alter table events owner to etl;
"""
PUBLICATION: Final = "create publication etl_pub for table customers, orders, payments, events"
_RAN = "etl-dagster run"
_MELTANO_TABLES = """\
psql "$ADMIN_DSN" -qc "alter role my_admin login password '...'; create role my_user login"
echo '{"a": {"completed": {}, "partial": null}}' > states.json
export MELTANO_STATE_BACKEND_URI=postgres://my_admin@localhost/my_database/my_schema
etl-dagster state import --from states.json --yes
"""
_THREE_VERSIONS = """\
psql "$ADMIN_DSN" -qc "create schema etl authorization etl"
for day in 23 24 25; do
    half='{"completed": {"day": '$day'}, "partial": null}'
    echo '{"dev:tap-github-to-target-duckdb": '"$half}" > states.json
    etl-dagster state import --from states.json --yes
done
"""
#: What the reader of a page has done before a block that begins with a text, or before all blocks.
GIVEN: Final[dict[str, dict[str, str]]] = {
    "docs/destinations/duckdb.md": {"etl-dagster query": _RAN},
    "docs/guides/altered-tables.md": {"": 'psql "$ADMIN_DSN" -qc "alter role etl superuser"'},
    "docs/guides/command-line.md": {
        "echo 'eval \"$(_ETL_DAGSTER_COMPLETE=zsh": ". ~/.bashrc; complete -p etl-dagster",
        "echo '_ETL_DAGSTER_COMPLETE=fish": "mkdir -p ~/.config/fish",
    },
    "docs/guides/dagster-troubleshooting.md": {"": _RAN},
    "docs/guides/dagster.md": {"from etl_dagster.dagster import EtlConfigFileResource": _RAN},
    "docs/guides/ducklake.md": {
        "from dagster": """psql "$ADMIN_DSN" -qc "alter role etl password '...'" """
    },
    "docs/guides/monitoring.md": {"$ etl-dagster status --html": _RAN},
    "docs/guides/odd-values.md": {"SELECT orders.id": _RAN},
    "docs/guides/remove.md": {"": _RAN},
    "docs/guides/shards.md": {
        "": 'psql "$ADMIN_DSN" -qc "alter publication etl_pub drop table events"'
    },
    "docs/guides/tables-in-trouble.md": {"": _RAN},
    "docs/guides/your-postgres.md": {
        "etl-dagster init": 'psql "$ADMIN_DSN" -qc "alter role etl replication"'
    },
    "docs/meltano/positions.md": {"": _RAN},
    "docs/meltano/state-backend.md": {
        "CREATE SCHEMA": 'psql "$ADMIN_DSN" -qc "create role my_admin"',
        "GRANT USAGE": _MELTANO_TABLES,
        "from etl_dagster": """psql "$ADMIN_DSN" -qc "alter role my_user password '...'" """,
        "$ etl-dagster state history": _THREE_VERSIONS,
    },
}
#: What the code of a page takes from around it.
NAMES: Final[dict[str, str]] = {
    "README.md": "monkeypatch.setenv('SOURCE_PASSWORD', '...')",
    "docs/guides/own-package.md": """\
from concurrent.futures import Future
from etl_dagster.errors import DestinationUnreachable
from etl_dagster.model.events import EventBatch
""",
    "docs/meltano/dagster.md": """\
from pathlib import Path

for name in ("SHOP_PASSWORD", "PROD_STATE_URI"):
    monkeypatch.setenv(name, "postgres://localhost/shop/etl")
Path("meltano").mkdir()
Path("meltano/meltano.yml").write_text("environments: [{name: dev}, {name: prod}]")
monkeypatch.setattr(
    "etl_dagster.integrations.dagster_meltano.project.MeltanoProject.ask_json",
    lambda *_, **__: {"streams": [{"tap_stream_id": "orders", "stream": "orders", "schema": {},
        "metadata": [{"breadcrumb": [], "metadata": {"selected": True}}]}]},
)
""",
    "docs/meltano/positions.md": """\
import threading
from etl_dagster import Pipeline, load_config
from etl_dagster.assembly import build_destination, build_store

class EndsByItself(Pipeline):
    def start(self):
        super().start()
        threading.Thread(target=self.end).start()

    def end(self):
        self.wait_until_caught_up()
        self.shutdown()

config = load_config("etl.yaml")
store = build_store(config)
pipeline = EndsByItself(config, store, build_destination(config))
""",
    "docs/meltano/state-backend.md": """\
from types import SimpleNamespace
subprocess = SimpleNamespace(run=lambda command, check: None)
""",
}
#: Pages whose SQL asks the destination.
ASKS_DESTINATION: Final = {"docs/guides/odd-values.md"}
#: The first block of a page that is for a pipeline that runs.
WHILE_IT_RUNS: Final = {"docs/guides/repair.md": "$ etl-dagster repair --all --dry-run"}


def place(block: Block, among: Iterable[str]) -> str | None:
    """The entry that a block is under: its language, or a text that it begins with."""
    for entry in among:
        if entry == block.language or (entry and block.first.startswith(entry)):
            return entry
    return None


def blocks_to_run(page: str) -> list[Block]:
    """The blocks of a page that are in neither list."""
    held = [entry for entries in HELD.get(page, {}).values() for entry in entries]
    left_out = [*held, *NOT_RUN.get(page, {})]
    return [block for block in blocks_of(page) if not place(block, left_out)]


class Reader:
    """Follows one page."""

    def __init__(
        self,
        page: str,
        folder: Path,
        server: EmbeddedPostgres,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.page = page
        self.folder = folder
        self.server = server
        self.names: dict[str, Any] = {"__name__": "page", "monkeypatch": monkeypatch}
        self.terminal = Terminal(folder, dict(os.environ))
        if "etl-dagster init" not in (REPOSITORY / page).read_text("utf-8"):
            (folder / "etl.yaml").write_text(CONFIGURATION, "utf-8")

    def follow(self, blocks: list[Block]) -> None:
        exec(NAMES.get(self.page, ""), self.names)
        given = GIVEN.get(self.page, {})
        if "" in given:
            self.terminal.type(given[""])
        for block in blocks:
            if before := place(block, given):
                self.terminal.type(given[before])
            with contextlib.ExitStack() as stack:
                if block.first == WHILE_IT_RUNS.get(self.page):
                    pipeline = stack.enter_context(etl_dagster.running("etl.yaml"))
                    pipeline.wait_until_caught_up()
                self.do(block)

    def do(self, block: Block) -> None:
        match block.language:
            case "sh" | "bash" | "console" | "":
                self.terminal.type(block.commands)
            case "python":
                text = textwrap.dedent(block.text).replace("/srv/meltano", "meltano")
                code = compile(text, block.page, "exec", dont_inherit=True)
                exec(code, self.names)
            case "yaml":
                self.read_settings(block, yaml.safe_load(block.text))
            case "sql":
                self.query(block.text)
            case "toml":
                points = tomllib.loads(block.text)["project"]["entry-points"]
                assert points.keys() <= {DESTINATIONS, STORES}
            case "json" | "json5":
                json.loads(re.sub(r"^//.*", "", block.text))
            case "text":
                pass  # what is shown
            case _:
                pytest.fail(f"{block.page} has a block that is not run: {block}")

    def read_settings(self, block: Block, settings: dict[str, Any]) -> None:
        """A section is read within the file of a pipeline, and belongs to it from then on if it is
        called as the file."""
        for name in re.findall(r"\$\{(\w+)\}", block.text):
            os.environ.setdefault(name, f"postgres://etl@localhost/shop/{name.lower()}")
        if "ops" in settings:  # the configuration of the job that the page has defined before
            jobs = self.names["defs"].resolve_all_job_defs()
            [op] = settings["ops"]
            validate_run_config(next(job for job in jobs if job.has_node_named(op)), settings)
        elif "state_backend" in settings:  # Meltano's
            backend = settings["state_backend"]
            locate(backend["uri"])
            assert {f"state_backend.postgres.{name}" for name in backend.get("postgres", ())} <= {
                setting.name for setting in vars(POSTGRES).values()
            }
        elif settings.get("type") == "etl_dagster.EtlPipelineComponent":
            EtlPipelineComponent.resolve_from_dict(settings["attributes"])
        else:
            whole = yaml.safe_load((self.folder / "etl.yaml").read_text("utf-8"))
            for name in ("destination", "destinations"):
                if settings.keys() & {"destination", "destinations"}:
                    whole.pop(name, None)
            for name, section in settings.items():
                known = whole.get(name)
                whole[name] = known | section if isinstance(known, dict) else section
            file = self.folder / (block.title or "read.yaml")
            file.write_text(yaml.safe_dump(whole), "utf-8")
            load_config(file)

    def query(self, text: str) -> None:
        if self.page in ASKS_DESTINATION:
            self.terminal.type(f"etl-dagster query {shlex.quote(text)}")
            return
        name = "my_database" if "my_schema" in text else "shop"
        dsn = self.server.dsn(name)
        if not re.search("ROLE|GRANT|my_schema", text):
            dsn = self.server.dsn(name, user="etl", password="...")
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in text.split(";\n"):
                connection.execute(statement.encode())


def install_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of `examples/etl_files`, which pages name by its types."""
    example = REPOSITORY / "examples" / "etl_files"
    project = tomllib.loads((example / "pyproject.toml").read_text("utf-8"))["project"]
    about = folder / "site" / "etl_files-1.0.0.dist-info"
    about.mkdir(parents=True)
    about.joinpath("METADATA").write_text("Name: etl-files\nVersion: 1.0.0\n", "utf-8")
    points = [
        line
        for group, named in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {place}" for name, place in named.items()))
    ]
    about.joinpath("entry_points.txt").write_text("\n".join(points), "utf-8")
    monkeypatch.syspath_prepend(about.parent)
    monkeypatch.syspath_prepend(example)


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    newest_server: EmbeddedPostgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    page: str = request.param
    for name, value in {
        # Whatever host a page names, it is this one.
        "PGHOSTADDR": newest_server.host,
        "PGPORT": str(newest_server.port),
        "ETL_DAGSTER__SOURCE__PORT": str(newest_server.port),
        "ADMIN_DSN": newest_server.dsn("shop"),
        "HOME": str(tmp_path),
        "PATH": f"{newest_server.binaries.folder}:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    install_example(tmp_path, monkeypatch)
    with contextlib.ExitStack() as stack:
        if {block.language for block in blocks_to_run(page)} - {"yaml", "toml", "text", "json5"}:
            stack.enter_context(server_of(page, newest_server, monkeypatch))
        reader = Reader(page, tmp_path, newest_server, monkeypatch)
        environ = dict(os.environ)
        yield reader
        os.environ.clear()
        os.environ.update(environ)
        if "store" in reader.names:
            reader.names["store"].close()


@contextlib.contextmanager
def server_of(
    page: str, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The databases, tables, roles and publications that the page takes as given."""
    text = (REPOSITORY / page).read_text("utf-8")
    names = ["shop", *(n for n in ("warehouse", "etl", "my_database") if f"/{n}" in text)]
    with contextlib.ExitStack() as stack:
        databases = [stack.enter_context(Database.create(server, name=name)) for name in names]
        shop = databases[0]
        shop.execute(TABLES)
        has_role = not any("CREATE ROLE etl" in block.text for block in blocks_to_run(page))
        if has_role:
            monkeypatch.setenv("PGPASSWORD", "...")
            shop.execute(ROLE)
            for database in databases[1:]:
                shop.execute(f"alter database {database.name} owner to etl")
        if "CREATE PUBLICATION etl_pub" not in text:
            shop.execute(PUBLICATION)
            if has_role:
                shop.execute("alter publication etl_pub owner to etl")
        try:
            yield
        finally:
            shop.execute("drop database if exists lake")
            roles = shop.query(
                "select rolname from pg_roles where rolname in ('etl', 'my_admin', 'my_user')"
            )
            for database in databases:
                database.drop_slots()
                database.execute(f"alter database {database.name} owner to current_user")
                for (role,) in roles:
                    database.execute(f"drop owned by {role} cascade")
            for (role,) in roles:
                shop.execute(f"drop role {role}")


@pytest.mark.parametrize("reader", [page for page in PAGES if blocks_to_run(page)], indirect=True)
def test_a_page_can_be_followed(reader: Reader) -> None:
    reader.follow(blocks_to_run(reader.page))


def test_every_excluded_block_exists() -> None:
    """An entry whose block is gone would leave out the next block that begins alike."""
    named = [(page, text) for page, by in HELD.items() for each in by.values() for text in each]
    named += [(page, text) for page, by in (*NOT_RUN.items(), *GIVEN.items()) for text in by]
    assert [
        (page, text)
        for page, text in named
        if text and not any(place(block, [text]) for block in blocks_of(page))
    ] == []
    for entries in HELD.values():
        for file in entries:
            assert (REPOSITORY / file).exists(), file


def test_extras_that_a_page_installs_are_there() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        extra
        for page in PAGES
        for block in blocks_of(page)
        for names in re.findall(r"etl-dagster\[([\w,]+)\]", block.text)
        for extra in names.split(",")
    }

    assert named
    assert named <= project["optional-dependencies"].keys()
