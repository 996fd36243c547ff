"""How tables look as assets, and what the parts of definitions know them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetsDefinition,
    AssetSpec,
    Definitions,
    RunRequest,
    SensorResult,
)

from etl_dagster.errors import ConfigError, InvalidState
from etl_dagster.integrations.dagster import (
    EtlConfigFileResource,
    EtlDagsterTranslator,
    PublishedTableProps,
    build_etl_assets,
    build_etl_checks,
    build_etl_definitions,
    build_etl_sensor,
    build_etl_source_specs,
    etl_assets,
    load_etl_asset_specs,
)
from etl_dagster.integrations.dagster.event_forms import as_observations, without_checks
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import ColumnSchema, TableSchema
from tests.support.known_tables import NOWHERE, remember_tables

POSTGRES = {"type": "postgres", "dsn": "postgresql://etl:a-password@there:5433/marts"}


@pytest.fixture
def etl_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    columns = (ColumnSchema(name="id", type_oid=20),)
    tables = tuple(
        TableSchema(number, schema, name, columns, LSN_ZERO)
        for number, (schema, name) in enumerate(
            [("public", "orders"), ("public", "people"), ("audit log", "events")], 1
        )
    )

    names = ("shop", "other", "shop__left", "shop__right")
    remember_tables(monkeypatch, tmp_path, tables, *names)
    return write(tmp_path)


def write(folder: Path, name: str = "etl.yaml", **more: Any) -> Path:
    sections: dict[str, Any] = {
        "pipeline": "shop",
        "source": {"dsn": f"postgresql://etl@{NOWHERE}/shopdb", "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": "warehouse.duckdb"},
        "tables": {"public.orders": {"mode": "append"}},
    }
    path = folder / name
    path.write_text(yaml.safe_dump(sections | more, sort_keys=False))
    return path


def test_catalogs_find_database_uri_and_the_users_own_lines(etl_yaml: Path) -> None:
    orders, people, _ = load_etl_asset_specs(etl_yaml)
    assert orders.metadata["dagster/table_name"] == "warehouse.public.orders"
    assert orders.metadata["dagster/uri"] == f"duckdb://{etl_yaml.parent}/warehouse.duckdb"
    lines = etl_yaml.read_text().splitlines()

    def line_of(spec: AssetSpec) -> str:
        (reference,) = spec.metadata["dagster/code_references"].code_references
        assert reference.file_path == str(etl_yaml)
        return lines[reference.line_number - 1]

    assert line_of(orders) == "  public.orders:"
    assert line_of(people) == lines[0]


def test_a_uri_has_no_password(etl_yaml: Path, tmp_path: Path) -> None:
    path = write(tmp_path, destination=POSTGRES)
    metadata = load_etl_asset_specs(path)[0].metadata
    assert metadata["dagster/table_name"] == "marts.public.orders"
    assert metadata["dagster/uri"] == "postgresql://etl@there:5433/marts"
    assert "a-password" not in str(metadata)


def test_assets_depend_on_the_tables_of_the_source_which_pipelines_share(
    etl_yaml: Path, tmp_path: Path
) -> None:
    other = write(tmp_path, "other.yaml", pipeline="other", destination=POSTGRES)
    both = Definitions.merge(build_etl_definitions(etl_yaml), build_etl_definitions(other))
    graph = both.resolve_asset_graph()
    source = AssetKey(["postgres", "shopdb", "public", "orders"])
    assert graph.get(source).child_keys == {
        AssetKey(["shop", "public", "orders"]),
        AssetKey(["other", "public", "orders"]),
    }
    assert {spec.key for spec in build_etl_source_specs(etl_yaml)} == {
        key for key in graph.get_all_asset_keys() if key.path[0] == "postgres"
    }
    alone = build_etl_definitions(etl_yaml, source_assets=False)
    assert {key.path[0] for key in alone.resolve_all_asset_keys()} == {"etl_dagster", "shop"}


def test_a_schema_may_have_a_group_of_its_own(etl_yaml: Path) -> None:
    one = {spec.group_name for spec in load_etl_asset_specs(etl_yaml)}
    each = [spec.group_name for spec in load_etl_asset_specs(etl_yaml, group_per_schema=True)]
    assert (one, each) == ({"shop"}, ["shop_public", "shop_public", "shop_audit_u20_log"])


class OtherKeys(EtlDagsterTranslator):
    """Keys, metadata and all else are the translator's."""

    def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
        return AssetSpec(["raw", table.schema.table_name], owners=["team:sales"])

    def get_source_spec(self, table: PublishedTableProps) -> AssetSpec | None:
        return None


def test_every_part_finds_the_tables_by_the_keys_of_the_translator(etl_yaml: Path) -> None:
    keys = {AssetKey(["raw", name]) for name in ("orders", "people")}
    tables = ["public.people", "public.orders"]

    @etl_assets(pipeline=etl_yaml, translator=OtherKeys(), tables=tables, name="raw_tables")
    def own(context):  # type: ignore[no-untyped-def]
        """Never called."""

    chosen = load_etl_asset_specs(etl_yaml, translator=OtherKeys(), tables=tables)
    for assets in ([own], build_etl_assets(etl_yaml, chosen)):
        assert {spec.key for asset in assets for spec in asset.specs} == keys
        assert {spec.owners[0] for asset in assets for spec in asset.specs} == {"team:sales"}
        (check,) = build_etl_checks(etl_yaml, assets)
        assert {key.asset_key for key in check.check_keys} == keys
        for checks in ([], [check]):
            defs = Definitions(
                assets=assets,
                asset_checks=checks,
                sensors=[build_etl_sensor(etl_yaml, assets, checks=checks)],
                resources={"shop": EtlConfigFileResource(path=str(etl_yaml))},
            )
            assert defs.resolve_job_def("shop_copy").asset_layer.selected_asset_keys == keys


def test_a_table_that_is_not_published_is_refused(etl_yaml: Path) -> None:
    with pytest.raises(InvalidState, match=r"not published: public\.gone"):
        load_etl_asset_specs(etl_yaml, tables=["public.gone"])


def test_a_part_of_definitions_is_for_one_of_several_destinations(
    etl_yaml: Path, tmp_path: Path
) -> None:
    several = {name: {"type": "duckdb", "path": f"{name}.duckdb"} for name in ("left", "right")}
    path = write(tmp_path, destinations=several)
    text = path.read_text().replace("destination:\n  type: duckdb\n  path: warehouse.duckdb\n", "")
    path.write_text(text)
    with pytest.raises(ConfigError, match="left, right"):
        load_etl_asset_specs(path)
    assert len([a for a in build_etl_definitions(path).assets or () if is_copied(a)]) == 6


def is_copied(asset: object) -> bool:
    return isinstance(asset, AssetsDefinition)


def test_a_tick_without_checks_and_with_observations() -> None:
    """Dagster refuses a run that asks for a check that the code location doesn't have."""
    key = AssetKey(["shop", "public", "orders"])
    result = SensorResult(
        run_requests=[
            RunRequest(asset_selection=[key], asset_check_keys=[AssetCheckKey(key, "c")])
        ],
        asset_events=[
            AssetMaterialization(key, description="2 inserted", metadata={"rows_inserted": 2}),
            AssetCheckEvaluation(asset_key=key, check_name="c", passed=True),
        ],
        cursor="one",
    )
    plain = as_observations(without_checks(result))
    (request,) = plain.run_requests or ()
    assert (request.asset_selection, request.asset_check_keys, plain.cursor) == ([key], None, "one")
    (event,) = plain.asset_events
    assert isinstance(event, AssetObservation)
    assert (event.asset_key, event.metadata["rows_inserted"].value) == (key, 2)
