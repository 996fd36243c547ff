"""What the YAML of a component means; `dg` itself is in the integration tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import (
    AssetKey,
    AssetSpec,
    DagsterInstance,
    Definitions,
    ResolutionContext,
    build_sensor_context,
)

from etl_dagster import EtlPipelineComponent
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster import build, build_etl_definitions
from etl_dagster.integrations.dagster.component import blocks
from etl_dagster.integrations.dagster.component.scaffolder import pipeline_name
from etl_dagster.integrations.dagster.component.translation import resolve_translation
from etl_dagster.integrations.dagster.resources.notices import RecentNotices
from etl_dagster.integrations.dagster.sensor import tick
from etl_dagster.integrations.dagster.sensor.supervision import Supervision
from etl_dagster.integrations.dagster.tables.kept_tables import tables_to_text
from etl_dagster.integrations.dagster.thresholds import CheckThresholds
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from tests.support.known_tables import NOWHERE, remember_tables

TABLES = tuple(
    TableSchema(number, "public", name, (ColumnSchema(name="id", type_oid=20),), LSN_ZERO)
    for number, name in enumerate(["orders", "people"], 1)
)


@pytest.fixture
def etl_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "etl.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "pipeline": "shop",
                "source": {"dsn": f"postgresql://etl@{NOWHERE}/shopdb", "publication": "etl_pub"},
                "destination": {"type": "duckdb", "path": "warehouse.duckdb"},
            }
        )
    )
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.write_text(tables_to_text("etl_pub", "shopdb", TABLES, {}))
    return path


def built(etl_yaml: Path, state: Path, **attributes: Any) -> Definitions:
    """The definitions of these attributes and of the state; no source is asked."""
    component = EtlPipelineComponent.resolve_from_dict({"pipeline": str(etl_yaml), **attributes})
    return component.build_defs_from_state(None, state)  # type: ignore[arg-type]


def names(defs: Definitions) -> dict[str, Any]:
    graph = defs.resolve_asset_graph()
    return {
        "assets": {(spec.key, spec.group_name, str(spec.tags)) for spec in graph.asset_nodes},
        "checks": set(graph.asset_check_keys),
        "sensors": [each.name for each in defs.sensors or ()],
        "schedules": [each.name for each in defs.schedules or ()],
        "resources": set(defs.resources or ()),
    }


def test_yaml_and_python_make_the_same_definitions(
    etl_yaml: Path, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remember_tables(monkeypatch, tmp_path, TABLES)
    by_python = names(build_etl_definitions(etl_yaml))
    assert len(by_python["assets"]) == 5
    assert names(built(etl_yaml, state)) == by_python


def test_a_state_of_another_publication_is_not_used(
    etl_yaml: Path, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remember_tables(monkeypatch, tmp_path, TABLES[:1])
    state.write_text(tables_to_text("other_pub", "shopdb", TABLES, {}))
    defs = built(etl_yaml, state, source_assets=False)
    assert set(defs.resolve_all_asset_keys()) == {
        AssetKey(["shop", "public", "orders"]),
        AssetKey(["etl_dagster", "shop"]),
    }


def test_a_translation_is_attributes_or_a_template_that_gives_them(
    etl_yaml: Path, state: Path
) -> None:
    defs = built(
        etl_yaml,
        state,
        source_assets=False,
        translation={
            "key_prefix": "raw",
            "deps": ["upstream/{{ table.table_name }}"],
            "kinds": ["table"],
            "code_version": "{{ 1 + 1 }}",
            "tags": {"columns": "{{ table.schema.columns | length }}"},
            "metadata": {"was": "{{ spec.key.to_user_string() }}"},
        },
    )
    key = AssetKey(["raw", "shop", "public", "orders"])
    (orders,) = [spec for spec in defs.resolve_all_asset_specs() if spec.key == key]
    assert [dep.asset_key for dep in orders.deps] == [AssetKey(["upstream", "orders"])]
    assert (orders.kinds, orders.code_version, orders.tags["columns"]) == ({"table"}, "2", "1")
    assert orders.metadata["was"] == "shop/public/orders"
    assert orders.metadata["dagster/storage_kind"] == "duckdb"

    given: Any
    for given in (AssetSpec("one"), {"key": "one"}):
        scope = ResolutionContext.default().with_scope(own=given)
        translate = resolve_translation(scope, "{{ own }}")
        assert translate(AssetSpec("other"), None).key == AssetKey("one")  # type: ignore[arg-type]


def test_partitions_and_attributes_that_no_asset_has_are_refused() -> None:
    for given, words in (({"partitions_def": 1}, "no partitions"), (5, "gave int")):
        scope = ResolutionContext.default().with_scope(own=given)
        with pytest.raises(ConfigError, match=words):
            resolve_translation(scope, "{{ own }}")(AssetSpec("a"), None)  # type: ignore[arg-type]


def test_blocks_decide_about_schedules_and_may_leave_out_checks(
    etl_yaml: Path, state: Path
) -> None:
    repaired = names(
        built(
            etl_yaml,
            state,
            checks={"replication": False},
            schedules={
                "reconciliation": {"repair": True},
                "sync": {"cron_schedule": "*/15 * * * *"},
            },
        )
    )
    assert repaired["checks"] == set()
    assert repaired["schedules"] == ["shop_reconciliation", "shop_sync_schedule"]
    by_file = yaml.safe_load(etl_yaml.read_text())
    duckdb = by_file.pop("destination")
    by_file["destinations"] = {n: duckdb | {"path": f"{n}.duckdb"} for n in ("left", "right")}
    several = etl_yaml.with_name("several.yaml")
    several.write_text(yaml.safe_dump(by_file))
    sync = {"sync": {"cron_schedule": "*/15 * * * *"}}
    # One run feeds both from the slot that they share.
    assert names(built(several, state, schedules=sync))["schedules"] == ["shop_sync_schedule"]


def test_blocks_add_checks_to_those_of_the_sensor(etl_yaml: Path, state: Path) -> None:
    further = {"content_match", "row_count_match", "schema_drift"}
    by_default = {check.name for check in names(built(etl_yaml, state))["checks"]}
    compared = names(built(etl_yaml, state, checks=dict.fromkeys(further, True)))
    assert {check.name for check in compared["checks"]} == by_default | further


@pytest.mark.parametrize(
    ("management_type", "hint"),
    [
        ("LOCAL_FILESYSTEM", "refresh the state with `dg utils refresh-defs-state`, then reload"),
        ("VERSIONED_STATE_STORAGE", "`dg utils refresh-defs-state`, then reload"),
        ("LEGACY_CODE_SERVER_SNAPSHOTS", "no asset yet (reload the code location): public.new"),
    ],
)
def test_the_sensor_says_what_gives_a_new_table_its_asset(
    etl_yaml: Path, state: Path, monkeypatch: pytest.MonkeyPatch, management_type: str, hint: str
) -> None:
    """Reloading the code location alone changes nothing if the state is kept elsewhere."""
    status = PipelineStatus("shop", "duckdb", "streaming", at=1.0)
    status = replace(status, tables={"public.new": TableStatus(9, "public.new", "ready", "id")})
    supervision = Supervision(status, generation=1)
    monkeypatch.setattr(tick, "observe", lambda _: supervision)
    monkeypatch.setattr(RecentNotices, "lines", lambda *_: [])
    defs = built(
        etl_yaml,
        state,
        sensor={"mode": "observe"},
        checks={"replication": False},
        defs_state={"management_type": management_type},
    )
    (sensor,) = defs.sensors or ()
    with (
        DagsterInstance.ephemeral() as instance,
        build_sensor_context(
            instance=instance, resources=dict(defs.resources or {}), last_sensor_start_time=1.0
        ) as context,
    ):
        line = str(sensor.evaluate_tick(context).skip_message)  # type: ignore[union-attr]

    assert "no asset yet" in line
    assert hint in line


def test_thresholds_of_the_yaml_are_those_of_every_check(
    etl_yaml: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor's and the runs': a check by hand must not contradict the sensor."""
    given: list[CheckThresholds] = []
    for module, name in (
        (build, "build_etl_checks"),
        (build, "build_etl_pipeline_checks"),
        (build, "build_etl_sensor"),
        (blocks, "build_etl_count_checks"),
    ):
        made = getattr(module, name)

        def spy(*args: Any, made: Any = made, **options: Any) -> Any:
            given.append(options["thresholds"])
            return made(*args, **options)

        monkeypatch.setattr(module, name, spy)

    thresholds = {"lag_warn_s": 60, "wal_error_bytes": 1024, "rows_warn": 5, "rows_error": 5}
    built(etl_yaml, state, checks={"row_count_match": True, "thresholds": thresholds})

    assert given == [CheckThresholds(**thresholds)] * 4


def test_a_threshold_that_warns_after_it_fails_is_refused(etl_yaml: Path, state: Path) -> None:
    thresholds = {"lag_warn_s": 600, "lag_error_s": 60}
    with pytest.raises(Exception, match=r"lag_warn_s \(600.0\) is more than"):
        built(etl_yaml, state, checks={"thresholds": thresholds})


@pytest.mark.parametrize(
    "folder", ["Web-Shop", "2024_sales", "_", "größe", "a" * 40, "x" * 29 + "-y"]
)
def test_a_scaffolded_pipeline_has_a_name_that_the_configuration_takes(folder: str) -> None:
    source = {"database": "shop", "publication": "etl_pub"}
    name = pipeline_name(folder)

    assert PipelineConfig(pipeline=name, source=source).pipeline == name


def test_a_scaffolded_pipeline_is_named_after_its_folder() -> None:
    assert [pipeline_name(each) for each in ("Web-Shop", "2024_sales")] == [
        "web_shop",
        "p_2024_sales",
    ]
