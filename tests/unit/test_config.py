"""One file, every mistake at once, and no secret anywhere else."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel

from etl_dagster.config import (
    ENV_PREFIX,
    PipelineConfig,
    SourceConfig,
    load_config,
    parse_config,
)
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.errors import ConfigError, ConfigFileMissing
from etl_dagster.kinds import DESTINATIONS, STORES, built_in_kinds, find_config_model
from etl_dagster.stores.postgres.config import PostgresStoreConfig
from tests.support.leaks import make_secret

SECRET = make_secret("s3cr3t-Pa55")


def minimal(**source: Any) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"publication": "pub", "database": "shop"} | source,
        "destination": {"type": "memory"},
    }


def write(folder: Path, text: str) -> Path:
    path = folder / "etl.yaml"
    path.write_text(text, "utf-8")
    return path


# -- mistakes ----------------------------------------------------------------------------------


def test_every_mistake_is_reported_at_once_with_its_place() -> None:
    raw = {
        "pipeline": "My Shop",
        "source": {"database": "shop", "port": 99999, "pasword": SECRET},
        "destination": {"type": "bigquery"},
        "batch": {"max_fill_ms": "soon"},
        "copy": {"chunk_rows": 0},
        "tables": {"flights": {}},
        "sources": {},
    }

    with pytest.raises(ConfigError) as caught:
        parse_config(raw, {})

    places = {mistake.partition(":")[0] for mistake in caught.value.mistakes}
    assert places == {
        "pipeline",
        "source.publication",
        "source.port",
        "source.pasword",
        "destination.type",
        "batch.max_fill_ms",
        "copy.chunk_rows",
        "tables",
        "sources",
    }
    assert SECRET not in str(caught.value)


def test_an_unknown_key_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"source\.publicaton: unknown key"):
        parse_config(minimal(publicaton="x"), {})


@pytest.mark.parametrize("section", ["source", "state_store", "destination", "batch", "tables"])
@pytest.mark.parametrize("value", [None, ["type: duckdb"], 7])
def test_a_section_without_a_mapping_is_a_mistake_in_yamls_own_words(
    section: str, value: object
) -> None:
    """Null is what is left of a section whose every line is commented out."""
    with pytest.raises(ConfigError) as refused:
        parse_config(minimal() | {section: value}, {})

    assert refused.value.mistakes == (f"{section}: must hold a mapping, such as `key: value`",)


@pytest.mark.parametrize("schema", ["a%sb", "é" * 32, "a\0b"])
def test_a_schema_that_postgres_would_call_otherwise_is_refused(schema: str) -> None:
    with pytest.raises(ConfigError, match=r"state_store\.schema: must have at most 63 bytes"):
        parse_config(minimal() | {"state_store": {"schema": schema}}, {})


def test_an_unknown_destination_names_those_that_are_known() -> None:
    raw = minimal() | {"destination": {"type": "bigquery"}}

    with pytest.raises(
        ConfigError, match=r"destination\.type: unknown destination.*duckdb, ducklake, http, memory"
    ):
        parse_config(raw, {})


def test_a_source_needs_a_dsn_or_a_database() -> None:
    raw = minimal()
    del raw["source"]["database"]

    with pytest.raises(ConfigError, match="source: needs either dsn, or at least database"):
        parse_config(raw, {})


def test_a_table_without_its_schema_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tables: write tables as schema\.table: flights"):
        parse_config(minimal() | {"tables": {"flights": {}}}, {})


def test_broken_yaml_is_named_by_line_without_quoting_it(tmp_path: Path) -> None:
    path = write(tmp_path, f"pipeline: shop\nsource: {{password: {SECRET}\n")

    with pytest.raises(ConfigError, match="line 3") as caught:
        load_config(path, {})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("source: &it\n  parts: *it\n", "line 1, column 9: a section must not hold an alias"),
        (
            "pipeline: shop\ntables: &it [*it]\n",
            "line 2, column 9: a section must not hold an alias",
        ),
        ("pipeline: 2026-99-99\n", "line 1, column 11: this is not a valid date"),
        ("2026-99-99: x\n", "line 1, column 1: this is not a valid date"),
        (f"pipeline: !!int {SECRET}\n", "this is not a valid number"),
        ("a: !!float x\n", "this is not a valid number"),
        ("a: !!bool x\n", "this is not a valid true or false"),
        ("a: !!timestamp x\n", "this is not a valid date"),
        (f"a: {'9' * 5000}\n", "this is not a valid number"),
        ("pipeline: shop\na: b\x07\n", r"line 2, column 5: the character U\+0007 is not allowed"),
    ],
)
def test_yaml_that_cannot_be_read_has_its_place(tmp_path: Path, text: str, match: str) -> None:
    """PyYAML raises ValueError and others without a place, and may quote a password."""
    with pytest.raises(ConfigError, match=match) as caught:
        load_config(write(tmp_path, text), {})
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileMissing) as missing:
        load_config(tmp_path / "no.yaml", {})
    assert missing.value.reason == f"there is no file no.yaml in {tmp_path}"
    assert missing.value.mistakes == (missing.value.reason,)


def test_a_file_in_a_folder_that_is_not_one_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigFileMissing):
        load_config(tmp_path / "file" / "etl.yaml", {})


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: Is a directory"):
        load_config(tmp_path, {})


@pytest.mark.parametrize("text", ["[1]", "just words", "3"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_config(write(tmp_path, text), {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).flatmap(
        lambda value: st.sampled_from(sorted(PipelineConfig.model_fields)).map(
            lambda key: minimal() | {key: value}
        )
    )
)
def test_whatever_stands_in_the_file_is_accepted_or_a_config_error(raw: dict[str, Any]) -> None:
    try:
        config = parse_config(raw, {})
    except ConfigError:
        return
    assert config.pipeline


# -- environment -------------------------------------------------------------------------------


def test_variables_are_expanded_wherever_text_may_stand() -> None:
    raw = minimal(host="${HOST}", user="${USER:-etl}", port="${PORT:-5433}")

    source = parse_config(raw, {"HOST": "db"}).source

    assert (source.host, source.user, source.port) == ("db", "etl", 5433)


def test_two_dollars_are_one() -> None:
    assert parse_config(minimal(user="a$$b$$${C}"), {"C": "c"}).source.user == "a$b$c"


def test_every_variable_that_is_not_set_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(minimal(host="${NO_HOST}", user="${NO_USER}") | {"nonsense": 1}, {})

    assert caught.value.mistakes == (
        "source.host: the environment variable NO_HOST is not set",
        "source.user: the environment variable NO_USER is not set",
        "nonsense: unknown key",
    )


def test_what_an_expanded_value_holds_is_not_expanded_again() -> None:
    """A password may hold a dollar sign and braces."""
    config = parse_config(minimal(password="${PW}"), {"PW": make_secret("a${B}$$")})

    assert config.source.password is not None
    assert config.source.password.get_secret_value() == make_secret("a${B}$$")


def test_an_override_wins_over_the_file() -> None:
    environ = {
        f"{ENV_PREFIX}SOURCE__PASSWORD": SECRET,
        f"{ENV_PREFIX}BATCH__MAX_ROWS": "7",
        f"{ENV_PREFIX}ENVIRONMENT": "prod",
    }

    config = parse_config(minimal(password=make_secret("from the file")), environ)

    assert config.source.password is not None
    assert config.source.password.get_secret_value() == SECRET
    assert (config.batch.max_rows, config.environment) == (7, "prod")


def test_an_override_is_not_expanded() -> None:
    config = parse_config(minimal(), {f"{ENV_PREFIX}SOURCE__PASSWORD": make_secret("$a${b}")})

    assert config.source.password is not None
    assert config.source.password.get_secret_value() == make_secret("$a${b}")


def test_a_section_without_keys_can_be_overridden(tmp_path: Path) -> None:
    text = "pipeline: shop\nsource:\ndestination: {type: memory}\n"
    environ = {f"{ENV_PREFIX}SOURCE__DATABASE": "db", f"{ENV_PREFIX}SOURCE__PUBLICATION": "pub"}

    assert load_config(write(tmp_path, text), environ).source.database == "db"


def test_an_override_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"source\.pasword: unknown key"):
        parse_config(minimal(), {f"{ENV_PREFIX}SOURCE__PASWORD": "x"})
    with pytest.raises(ConfigError, match=f"{ENV_PREFIX}PIPELINE__X: there is no such setting"):
        parse_config(minimal(), {f"{ENV_PREFIX}PIPELINE__X": "x"})


# -- secrets -----------------------------------------------------------------------------------


def test_no_secret_shows_in_any_rendering_of_the_configuration() -> None:
    dsn = f"postgresql://u:{SECRET}@h/d"
    config = parse_config(minimal(password=SECRET, dsn=dsn) | {"state_store": {"dsn": dsn}}, {})

    for text in (repr(config), str(config), config.model_dump_json(), repr(config.source)):
        assert SECRET not in text
    assert SECRET in config.source.conninfo()
    store = config.state_store
    assert isinstance(store, PostgresStoreConfig)
    assert SECRET in store.conninfo(config.source)


def test_a_dsn_that_cannot_be_read_is_not_quoted() -> None:
    config = parse_config(minimal(dsn=f"host=db password='{SECRET}"), {})

    with pytest.raises(ConfigError, match=r"source\.dsn") as caught:
        config.source.conninfo()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("place", ["source", "state_store"])
def test_a_secret_of_the_wrong_type_is_not_quoted(place: str) -> None:
    raw = minimal()
    raw.setdefault(place, {})["dsn"] = [SECRET]

    with pytest.raises(ConfigError, match=rf"{place}\.dsn") as caught:
        parse_config(raw, {})
    assert SECRET not in str(caught.value)


# -- what it means -----------------------------------------------------------------------------


def test_parts_win_over_the_dsn() -> None:
    from psycopg.conninfo import conninfo_to_dict

    config = parse_config(
        minimal(dsn=f"postgresql://u:{make_secret()}@old/d1", host="new", database="d2"), {}
    )

    given = conninfo_to_dict(config.source.conninfo())
    assert (given["host"], given["dbname"], given["user"]) == ("new", "d2", "u")


def test_the_state_store_is_the_source_unless_told() -> None:
    config = parse_config(minimal(), {})
    elsewhere = parse_config(minimal() | {"state_store": {"dsn": "dbname=state"}}, {})

    for made, expected in ((config, config.source.conninfo()), (elsewhere, "dbname=state")):
        assert isinstance(made.state_store, PostgresStoreConfig)
        assert made.state_store.conninfo(made.source) == expected


def test_a_relative_destination_is_relative_to_the_file(tmp_path: Path) -> None:
    text = json.dumps(minimal() | {"destination": {"type": "duckdb", "path": "out/x.duckdb"}})

    destination = load_config(write(tmp_path, text), {}).destination

    assert isinstance(destination, DuckDBDestinationConfig)
    assert destination.path == tmp_path / "out" / "x.duckdb"


def test_an_absolute_destination_stays(tmp_path: Path) -> None:
    raw = minimal() | {"destination": {"type": "duckdb", "path": "/data/x.duckdb"}}

    destination = parse_config(raw, {}, origin=tmp_path / "etl.yaml").destination

    assert isinstance(destination, DuckDBDestinationConfig)
    assert destination.path == Path("/data/x.duckdb")


def test_a_state_id_is_meltanos() -> None:
    assert parse_config(minimal(), {}).state_id("public.a") == "dev:shop-to-memory:public.a"


def test_a_destination_given_as_an_object_lends_its_name() -> None:
    raw = minimal()
    del raw["destination"]

    config = parse_config(raw, {}).given_destination("paper")

    assert config.state_id("public.a") == "dev:shop-to-paper:public.a"
    assert parse_config(minimal(), {}).given_destination("paper") == parse_config(minimal(), {})


def test_a_file_must_name_a_destination(tmp_path: Path) -> None:
    raw = minimal()
    del raw["destination"]

    with pytest.raises(ConfigError, match="destination: is required"):
        load_config(write(tmp_path, json.dumps(raw)), {})


def test_a_table_that_is_not_named_has_the_defaults() -> None:
    config = parse_config(minimal() | {"tables": {"public.log": {"copy": False}}}, {})

    assert config.table("public.log").copy_rows is False
    assert config.table("public.other").copy_rows is True


def test_a_configuration_made_in_python_is_checked_the_same() -> None:
    config = PipelineConfig.model_validate(minimal())

    assert config == parse_config(minimal(), {})
    with pytest.raises(ValueError, match="frozen"):
        config.pipeline = "other"  # type: ignore[misc]


# -- what is written about it ------------------------------------------------------------------


#: Types whose settings are listed in a guide of their own.
PAGES_OF_THEIR_OWN = {"dlt", "ducklake", "http", "singer"}
KINDS = {"state_store": STORES, "destination": DESTINATIONS}


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting as people write it."""
    for name, field in model.model_fields.items():
        place = f"{prefix}{field.alias or name}"
        models = [
            part
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if name in KINDS:
            kinds = [kind for kind in built_in_kinds(KINDS[name]) if kind not in PAGES_OF_THEIR_OWN]
            models = [find_config_model(KINDS[name], kind) for kind in kinds]
        if not models:
            yield place
        for part in models:
            keys = {"tables": ".<schema.table>", "columns": ".<column>", "shards": ".<name>"}
            key = keys.get(name, "")
            inner = f"{place}{key}."
            yield from settings(part, inner)


def test_the_page_of_settings_lists_every_setting() -> None:
    script = Path(__file__).parents[2] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", module.configuration_page(), re.M)

    assert {name for name, _ in rows} >= {
        each.rpartition(".")[2] for each in settings(PipelineConfig)
    }
    assert ("max_retained_wal", "size, at least 1000000 bytes") in rows


#: The options of `PipelineConfig` in Supabase ETL, down to those that hold a value.
SUPABASE_OPTIONS = {
    "id",
    "publication_name",
    *(f"pg_connection.{name}" for name in ("host", "port", "name", "username", "password")),
    *(f"pg_connection.tls.{name}" for name in ("enabled", "trusted_root_certs")),
    *(f"pg_connection.keepalive.{name}" for name in ("idle_secs", "interval_secs", "retries")),
    *(f"batch.{name}" for name in ("max_fill_ms", "memory_budget_ratio", "max_bytes")),
    "table_error_retry_delay_ms",
    "table_error_retry_max_attempts",
    "max_table_sync_workers",
    "max_copy_connections_per_table",
    "memory_refresh_interval_ms",
    *(f"memory_backpressure.{name}_threshold" for name in ("activate", "resume")),
    *(f"table_sync_copy.{rule}_tables" for rule in ("include_all", "skip_all")),
    *(f"table_sync_copy.{rule}_tables" for rule in ("include", "skip")),
    *(f"invalidated_slot_behavior.{name}" for name in ("error", "recreate")),
}


def test_each_option_of_supabase_etl_has_settings_that_there_are() -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "from-supabase-etl.md"
    rows = re.findall(r"^\| `([a-z_.]+)` \| (`[^|]+) \|", page.read_text("utf-8"), re.M)

    assert sorted(option for option, _ in rows) == sorted(SUPABASE_OPTIONS)
    named = {setting for _, ours in rows for setting in re.findall(r"`([^`]+)`", ours)}
    assert named <= set(settings(PipelineConfig))


@pytest.mark.parametrize(
    ("dsn", "given", "expected"),
    [
        ("", {}, {}),
        ("", {"keepalive_idle_s": 20}, {"idle": "20", "interval": "10", "count": "3"}),
        (
            "keepalives_interval=4",
            {"keepalive_count": 2},
            {"idle": "30", "interval": "4", "count": "2"},
        ),
    ],
)
def test_keepalive_is_set_as_a_whole_and_over_the_dsn(
    dsn: str, given: dict[str, int], expected: dict[str, str]
) -> None:
    """On Linux the timeout of what was sent decides; with another one, probes would not count."""
    config = parse_config(minimal(dsn=dsn, **given), {})
    found = conninfo_to_dict(config.source.conninfo())

    assert {k: v for k in ("idle", "interval", "count") if (v := found.get(f"keepalives_{k}"))} == (
        expected
    )
    probes = [int(value) for value in expected.values()]
    timeout_ms = str((probes[0] + probes[1] * probes[2]) * 1000) if probes else None
    assert found.get("tcp_user_timeout") == timeout_ms


@pytest.mark.parametrize("count", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1"])
def test_a_keepalive_that_is_not_a_number_is_left_for_libpq_to_refuse(count: str) -> None:
    config = parse_config(minimal(dsn=f"keepalives_count={count}", keepalive_idle_s=20), {})

    assert conninfo_to_dict(config.source.conninfo())["keepalives_count"] == count


def test_a_very_long_keepalive_fits_into_libpqs_integers() -> None:
    config = parse_config(minimal(keepalive_idle_s=3_000_000), {})

    assert conninfo_to_dict(config.source.conninfo())["tcp_user_timeout"] == str(2**31 - 1)


@pytest.mark.parametrize(
    ("dsn", "given", "expected"),
    [
        ("", {}, "10"),
        ("connect_timeout=3", {}, "3"),
        ("connect_timeout=3", {"connect_timeout_s": 20}, "20"),
        ("", {"connect_timeout_s": 20}, "20"),
    ],
)
def test_the_connect_timeout_of_a_dsn_is_kept_unless_one_is_set(
    dsn: str, given: dict[str, int], expected: str
) -> None:
    raw = minimal(dsn=dsn, standby=True, primary_dsn="host=db1", **given)
    raw |= {"state_store": {"dsn": "dbname=state"}}
    source = parse_config(raw, {}).source

    assert source.primary is not None
    for reached in (source, source.primary):
        assert conninfo_to_dict(reached.conninfo())["connect_timeout"] == expected


def test_the_primary_of_a_standby_is_reached_as_the_standby_is_but_elsewhere() -> None:
    dsn = f"host=replica port=6000 user=etl password={SECRET} dbname=shop sslmode=require"
    raw = minimal(dsn=dsn, standby=True, primary_dsn="host=db1")
    config = parse_config(raw | {"state_store": {"dsn": "dbname=state"}}, {})

    primary = config.source.primary
    assert primary is not None
    found = conninfo_to_dict(primary.conninfo())
    assert (found["host"], found["user"], found["password"], found["dbname"]) == (
        "db1",
        "etl",
        SECRET,
        "shop",
    )
    assert found["sslmode"] == "require"
    assert "port" not in found
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"standby": True}, "state_store: give it a dsn"),
        ({"primary_dsn": "host=db1"}, "set standby: true"),
        ({"standby": True, "failover": True}, "exclude each other"),
    ],
)
def test_what_a_standby_cannot_do_is_refused(source: dict[str, Any], match: str) -> None:
    store = {"state_store": {"dsn": "dbname=state"}} if "failover" in source else {}
    with pytest.raises(ConfigError, match=match):
        parse_config(minimal(**source) | store, {})


def test_tables_are_chosen_for_copying_by_their_names() -> None:
    raw = minimal() | {"tables": {"*.*": {"copy": False}, "sales.*": {"copy": True}}}
    config = parse_config(raw, {})

    copied = [config.table(name).copy_rows for name in ("public.logs", "sales.orders")]
    assert copied == [False, True]


def test_a_lost_slot_of_several_destinations_is_not_replaced() -> None:
    raw = {**minimal(), "on_lost_slot": "recopy"}
    raw["destinations"] = {"one": raw.pop("destination")}

    with pytest.raises(ConfigError, match="on_lost_slot: recopy is for a pipeline with one"):
        parse_config(raw, {})


def test_off_in_yaml_is_off_for_streaming() -> None:
    """Without quotes it is False to YAML."""
    source = {"publication": "p", "database": "d"}
    assert SourceConfig.model_validate(source).streaming == "auto"
    assert SourceConfig.model_validate({**source, "streaming": False}).streaming == "off"


def test_what_a_postgres_does_by_itself_may_be_written_down_and_holds_no_other_back() -> None:
    """The file that `init` writes names the default of every setting."""
    replica = {"type": "postgres", "dsn": "postgresql://replica/shop"}
    file = {"type": "duckdb", "path": "shop.duckdb"}
    alone = {"pipeline": "shop", "source": {"dsn": "postgresql://db/shop", "publication": "p"}}
    for choice in ("native", "text"):
        parse_config(alone | {"destination": replica, "nested": choice}, {})
    with pytest.raises(ConfigError, match="nested: a Postgres has the type itself"):
        parse_config(alone | {"destination": replica, "nested": "json"}, {})

    both = alone | {"destinations": {"replica": replica, "file": file}, "nested": "json"}
    assert parse_config(both, {}).member("file").nested_of("public.orders", "tags") == "json"
