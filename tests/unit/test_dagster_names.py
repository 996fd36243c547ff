"""Every table has names of its own in Dagster, whatever it is called in Postgres."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Definitions,
    multi_asset,
)
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.integrations.dagster import (
    EtlDagsterTranslator,
    PublishedTableProps,
    build_etl_definitions,
)
from etl_dagster.integrations.dagster.names import (
    groups_with_distinct_identifiers,
    key_part,
    step_name,
)
from etl_dagster.integrations.dagster_meltano.assets import distinct_specs

#: Identifiers of Postgres: anything but the zero byte, and letters that come close to each other.
_ANYTHING = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=63)
_CLOSE = st.text("ab_-.u20f", min_size=1, max_size=12)
_NAMES = _ANYTHING | _CLOSE

HOSTILE = [
    *("größe", "日本", "東京", "a b", 'quo"te', "it's", "a/b", "$", "%", ",", ":", "[x]", "{x}"),
    *("🙂", "a-b", "a_b", "a.b", "au2db", "a-u2d-b", "_", "__", "-", "A", "a", "new\nline", "*"),
    "x" * 63,
]
PAIRS = [("sales.eu", "orders"), ("sales", "eu.orders"), ("a_b", "c"), ("a", "b_c")]
#: No table of it has the name of another, as ``schema.table``.
UNDERSCORES = [("sales", "eu__orders"), ("sales__eu", "orders"), ("sales_", "_orders")]


@given(_NAMES, _NAMES)
def test_two_names_never_become_one_part_of_a_key(one: str, other: str) -> None:
    assert (key_part(one) == key_part(other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", key_part(one))


@given(st.lists(_NAMES, min_size=1, max_size=4), st.lists(_NAMES, min_size=1, max_size=4))
def test_two_tables_never_share_the_name_of_a_step(one: list[str], other: list[str]) -> None:
    assert (step_name("copy", one) == step_name("copy", other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9_]+", step_name("copy", one))


@pytest.mark.parametrize("name", ["orders", "order_items", "Orders2", "a-b", "v1.0", "_x", "a__b"])
def test_the_key_of_an_ordinary_name_is_the_name(name: str) -> None:
    """Assets keep their history."""
    assert key_part(name) == name


def test_a_name_that_looks_escaped_is_escaped() -> None:
    assert key_part("größe") == "gr-uf6.df-e"
    assert key_part("gr-uf6.df-e") == "gr-u2d-uf6-u2e-df-u2d-e"


@given(st.lists(st.lists(_CLOSE.map(key_part), min_size=1, max_size=3), max_size=8))
def test_the_keys_of_a_group_have_names_of_their_own(paths: list[list[str]]) -> None:
    keys = list(dict.fromkeys(AssetKey(path) for path in paths))
    groups = groups_with_distinct_identifiers(keys)
    assert sorted(key for group in groups for key in group) == sorted(keys)
    for group in groups:
        assert len({key.to_python_identifier() for key in group}) == len(group)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Definitions of a pipeline whose source is away; when last asked, it had these tables."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "etl.yaml").write_text(
        "pipeline: shop\n"
        "source: {dsn: 'postgresql://u@127.0.0.1:1/d', publication: p}\n"
        "destination: {type: duckdb, path: x.duckdb}\n"
    )

    def load(tables: Sequence[tuple[str, str]], **options: Any) -> Definitions:
        known = tmp_path / "etl_dagster" / "shop.tables.json"
        known.parent.mkdir(exist_ok=True)
        known.write_text(
            json.dumps(
                [
                    {
                        "id": number,
                        "schema_name": schema,
                        "table_name": table,
                        "replica_identity": "d",
                        "publication": "p",
                        "columns": [{"name": "id", "type_oid": 20}],
                    }
                    for number, (schema, table) in enumerate(tables, 1)
                ]
            )
        )
        defs = build_etl_definitions(tmp_path / "etl.yaml", **options)
        Definitions.validate_loadable(defs)
        return defs

    return load


def keys_of(defs: Definitions) -> set[AssetKey]:
    copied = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
    return {key for asset in copied for key in asset.keys}


def test_every_name_that_postgres_takes_has_an_asset(load: Any) -> None:
    tables = [("public", name) for name in HOSTILE] + [(name, "t") for name in HOSTILE]
    defs = load([*tables, *UNDERSCORES])
    keys = keys_of(defs)
    assert len(keys) == len(tables) + len(UNDERSCORES)
    assert {AssetKey(["shop", "public", "a_b"]), AssetKey(["shop", "public", "a-b"])} < keys
    # Each can be chosen by the string that the command line and the UI take.
    graph = defs.resolve_asset_graph()
    for key in keys:
        chosen = AssetSelection.from_string(f'key:"{key.to_user_string()}"').resolve(graph)
        assert key in chosen
    # And each has its checks, and can be what another asset depends on.
    checked = {check.asset_key for check in graph.asset_check_keys}
    assert checked == {*keys, AssetKey(["etl_dagster", "shop"])}

    for key in keys:

        @multi_asset(specs=[AssetSpec("mart", deps=[key])], name="mart")
        def mart() -> None: ...

        Definitions.validate_loadable(Definitions(assets=[mart]))


def test_a_table_whose_asset_cannot_be_built_is_left_out_with_a_warning(
    load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Flat(EtlDagsterTranslator):
        def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
            spec = super().get_asset_spec(table)
            if table.name == "public.odd":
                return spec.replace_attributes(owners=["not an owner"])
            return spec.replace_attributes(key=table.schema.table_name)

    tables = [("public", "orders"), ("public", "odd"), ("other", "orders"), ("public", "größe")]
    with caplog.at_level(logging.WARNING, "etl_dagster"):
        defs = load(tables, translator=Flat())
    assert keys_of(defs) == {AssetKey("orders")}
    warnings = [record.getMessage() for record in caplog.records if "no asset" in record.message]
    assert [re.search(r"table (\S+) has", line)[1] for line in warnings] == [  # type: ignore[index]
        "public.odd",
        "other.orders",
        "public.größe",
    ]
    assert "public.orders has the asset key 'orders' already" in warnings[1]


def test_a_translator_that_fails_for_every_table_is_an_error(load: Any) -> None:
    class Broken(EtlDagsterTranslator):
        def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        load([("public", "orders")], translator=Broken())


@given(st.sets(_NAMES, max_size=8))
def test_streams_of_a_tap_have_distinct_names(streams: set[str]) -> None:
    from etl_dagster.integrations.dagster.names import identifier_part

    specs = {
        stream: AssetSpec(["tap", *(identifier_part(part) for part in stream.split("."))])
        for stream in streams
    }
    distinct = distinct_specs(specs)
    identifiers = {spec.key.to_python_identifier() for spec in distinct.values()}
    assert len(identifiers) == len(streams)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", identifier) for identifier in identifiers)


def test_of_streams_with_one_name_in_dagster_the_first_keeps_it() -> None:
    def keys(*streams: str) -> list[str]:
        specs = {stream: AssetSpec(["tap", stream.replace("-", "_")]) for stream in streams}
        return [spec.key.path[-1] for spec in distinct_specs(specs).values()]

    assert keys("sales-eu_orders", "sales_eu-orders") == ["sales_eu_orders", "sales_eu-u2d-orders"]
    assert keys("a-b", "a_b") == ["a-u2d-b", "a_b"]
    assert keys("public-orders") == ["public_orders"]
