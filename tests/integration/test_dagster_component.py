"""A pipeline as a component: what `dg` scaffolds works, and continues without the source."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dagster import AssetKey, load_from_defs_folder
from dagster_dg_cli.cli import create_dg_cli

from tests.support.database import Database
from tests.support.leaks import LEAKS

_DEFINITIONS = """\
from pathlib import Path
from dagster import definitions, load_from_defs_folder

@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
_PACKAGE = "platform_of_this_test"
Dg = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an empty `dg` project, in which commands are typed."""
    root = tmp_path / "project"
    package = root / _PACKAGE
    (package / "defs").mkdir(parents=True)
    (root / "pyproject.toml").write_text(
        f'[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "{_PACKAGE}"\n'
    )
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(_DEFINITIONS)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    # `dg` sets it, so it is restored afterwards.
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


def dg(*arguments: str, fails: bool = False) -> str:
    """What a command of `dg` prints."""
    done = CliRunner().invoke(create_dg_cli(), list(arguments))
    LEAKS.look(done.output, f"output of dg {' '.join(arguments)}")
    assert (done.exit_code != 0) == fails, (done.output, done.exception)
    return done.output


def listed_assets() -> set[str]:
    """As by ``dg list defs``, which asks the source first."""
    return {asset["asset_key"] for asset in json.loads(dg("list", "defs", "--json"))["assets"]}


def loaded(project: Path) -> Any:
    return load_from_defs_folder(path_within_project=project / _PACKAGE)


def test_what_dg_scaffolds_works_and_is_kept_while_the_source_is_away(
    newest_database: Database, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY)",
        "CREATE TABLE people (id bigint PRIMARY KEY)",
        "COMMENT ON TABLE orders IS 'What customers bought.'",
        "CREATE PUBLICATION shop_pub FOR TABLE orders, people",
    )
    monkeypatch.setenv("SHOP_DSN", newest_database.dsn)
    dg("scaffold", "defs", "etl_dagster.EtlPipelineComponent", "shop", "--publication", "shop_pub")
    dg("check", "yaml")
    assert listed_assets() >= {"shop/public/orders", "shop/public/people"}

    file = project / _PACKAGE / "defs" / "shop" / "defs.yaml"
    content = yaml.safe_load(file.read_text())
    content["attributes"] |= {
        "translation": {
            "key": "raw/{{ table.table_name }}",
            "group_name": "{{ table.pipeline }}_raw",
            "tags": {"columns": "{{ table.schema.columns | length }}"},
        },
        "sensor": {"default_status": "RUNNING", "report_every_s": 60},
        "schedules": {
            "reconciliation": {"cron_schedule": "0 2 * * *", "default_status": "RUNNING"},
            "recopy": {"cron_schedule": "0 4 * * 0", "tables": ["public.orders"]},
        },
        "checks": {"replication": False},
    }
    file.write_text(yaml.safe_dump(content))
    dg("check", "yaml")

    defs = loaded(project)
    spec = defs.resolve_asset_graph().get(AssetKey(["raw", "orders"]))
    assert (spec.group_name, spec.tags["columns"]) == ("shop_raw", "1")
    assert spec.description.startswith("What customers bought.")
    assert spec.parent_keys == {AssetKey(["postgres", newest_database.name, "public", "orders"])}
    checks = {check.name for check in defs.resolve_asset_graph().asset_check_keys}
    assert checks == {"content_match"}
    assert [each.name for each in defs.sensors] == ["shop_replication"]
    assert {each.name for each in defs.schedules} == {"shop_reconciliation", "shop_recopy"}

    # A typo is found before anything is loaded.
    file.write_text(yaml.safe_dump(content).replace("report_every_s", "report_evry_s"))
    assert "report_evry_s" in dg("check", "yaml", fails=True)
    file.write_text(yaml.safe_dump(content))

    # The source is away: what is known stays, a refresh fails and says why.
    monkeypatch.setenv("SHOP_DSN", "postgresql://u@127.0.0.1:1/" + newest_database.name)
    shutil.rmtree(tmp_path / "etl_dagster")
    keys = {key.to_user_string() for key in defs.resolve_all_asset_keys()}
    assert listed_assets() == keys
    monkeypatch.delenv("SHOP_DSN")
    refused = dg("utils", "refresh-defs-state", fails=True)
    assert "SHOP_DSN is not set" in refused
    assert listed_assets() == keys
