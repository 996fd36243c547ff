"""What is wrong with a configuration is said with its line and in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.config import load_config, parse_config
from etl_dagster.errors import ConfigError

GOOD = """\
pipeline: shop
source:
  dsn: postgresql://db/shop
  publication: pub
destination:
  type: duckdb
  path: shop.duckdb
"""
NOT_CLOSED = "${ is not closed, or names no variable; $$ is a plain $"


def mistakes(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    file = folder / "etl.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(file, environ or {})
    return list(refused.value.mistakes)


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("destination:\n  type: memory\n", "line 8: destination: is there already, in line 5"),
        (
            "batch:\n  max_rows: 1\n  max_fill_ms: 5\n  max_rows: 2\n",
            "line 11: batch.max_rows: is there already, in line 9",
        ),
        (
            "tables:\n  public.a: {copy: false}\n  public.a: {}\n",
            "line 10: tables.public.a: is there already, in line 9",
        ),
        (
            "batch:\n  max_fil_ms: 1\n",
            "line 9: batch.max_fil_ms: unknown key; did you mean max_fill_ms?",
        ),
        (
            "max_fill_ms: 1\n",
            "line 8: max_fill_ms: unknown key; did you mean batch.max_fill_ms?",
        ),
        ("batches:\n  max_rows: 1\n", "line 8: batches: unknown key; did you mean batch?"),
        (
            "tables:\n  public.a:\n    copi: no\n",
            "line 10: tables.public.a.copi: unknown key; did you mean copy?",
        ),
        (
            "state_store:\n  shema: x\n",
            "line 9: state_store.shema: unknown key; did you mean schema?",
        ),
        ("nonsense: 1\n", "line 8: nonsense: unknown key"),
        ("batch:\n  max_rows: many\n", "line 9: batch.max_rows: must be a whole number"),
        ("batch:\n  max_rows: 0\n", "line 9: batch.max_rows: must be at least 1"),
        ("meltano:\n  interval_s: 0\n", "line 9: meltano.interval_s: must be more than 0"),
        ("meltano:\n  enabled: perhaps\n", "line 9: meltano.enabled: must be true or false"),
        (
            "batch:\n  max_bytes: 8 elephants\n",
            "line 9: batch.max_bytes: must be a number of bytes, or one with KB, MB, GB, TB, KiB, "
            "MiB, ...",
        ),
        ("environment: a b\n", "line 8: environment: must hold only letters, digits, _ and -"),
        (
            "tables:\n  public.a: {copy: '${COPY'}\n",
            f"line 9: tables.public.a.copy: {NOT_CLOSED}",
        ),
        (
            f"metrics: {{listen: 'localhost:{'9' * 5000}'}}\n",
            "line 8: metrics.listen: must be HOST:PORT, such as 127.0.0.1:9464",
        ),
        (f"batch: {{max_rows: '{'9' * 5000}'}}\n", "line 8: batch.max_rows: has too many digits"),
        ("1: x\n", "line 8: 1: a key must be a text: put it in quotes"),
        (
            "repair: {max_conections: 3}\n",
            "line 8: repair.max_conections: unknown key; did you mean max_connections?",
        ),
        (
            "tables: {public.a: {columns: {b: {mask: 1}}}}\n",
            "line 8: tables.public.a.columns.b.mask: must be null, hash, partial, {constant: ...}, "
            "{partial: {show_last: 4}} or off",
        ),
        (
            "tables: {public.a: {add: {b: null}}}\n",
            "line 8: tables.public.a.add.b: must be a text, a number, true, false, or {value: ..., "
            "type: ...}",
        ),
        ("environment: ${1ST}\n", f"line 8: environment: {NOT_CLOSED}"),
        ("environment: ${ENV}\n", "line 8: environment: the environment variable ENV is not set"),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, added: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, GOOD + added)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "pipeline: shop",
            "pipeline: Shop",
            "line 1: pipeline: must begin with a lower-case letter and hold only lower-case "
            "letters, digits and _",
        ),
        (
            "pipeline: shop",
            f"pipeline: {'x' * 31}",
            "line 1: pipeline: must have at most 30 characters",
        ),
        ("  path: shop.duckdb", "", "line 5: destination.path: is required"),
        (
            "  path: shop.duckdb",
            "  path: x\n  memory_limit: much",
            "line 8: destination.memory_limit: must be a size, such as 256MB or 1GiB",
        ),
        (
            "  publication",
            "  publikation",
            "line 4: source.publikation: unknown key; did you mean publication?",
        ),
    ],
)
def test_a_mistake_in_what_must_be_there_has_its_line(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    assert expected in mistakes(tmp_path, GOOD.replace(before, after))


def test_a_mistake_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    environ = {"ETL_DAGSTER__BATCH__MAX_ROWS": "many", "ETL_DAGSTER__BATCH__MAX_ROW": "1"}

    assert mistakes(tmp_path, GOOD, environ) == [
        "ETL_DAGSTER__BATCH__MAX_ROWS: batch.max_rows: must be a whole number",
        "ETL_DAGSTER__BATCH__MAX_ROW: batch.max_row: unknown key; did you mean max_rows?",
    ]


def test_a_section_that_only_a_variable_has_names_the_variable(tmp_path: Path) -> None:
    environ = {"ETL_DAGSTER__BATCHES__MAX_ROWS": "1"}

    assert mistakes(tmp_path, GOOD, environ) == [
        "ETL_DAGSTER__BATCHES__MAX_ROWS: batches: unknown key; did you mean batch?"
    ]


@pytest.mark.parametrize(
    ("nested", "column"), [("[" * 3000 + "]" * 3000, 108), ("{a: " * 3000 + "}" * 3000, 405)]
)
def test_what_is_nested_too_deeply_has_its_place(tmp_path: Path, nested: str, column: int) -> None:
    """Python would end it with a RecursionError."""
    assert mistakes(tmp_path, GOOD + f"extra: {nested}\n") == [
        f"line 8, column {column}: this is nested more than 100 levels deep"
    ]


@pytest.mark.parametrize("repeated", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path, repeated: str) -> None:
    """Eleven lines that amount to ten billion values."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 11):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {repeated.format(aliases)}")

    [mistake] = mistakes(tmp_path, GOOD + "\n".join(lines))
    assert "aliases repeat more than 100000 values" in mistake


def test_a_thousand_tables_may_share_their_settings(tmp_path: Path) -> None:
    tables = "".join(f"  public.t{number}: *shared\n" for number in range(1000))
    shared = "tables:\n  public.t: &shared {exclude: [a, b, c], columns: {d: {cast: text}}}\n"
    (tmp_path / "etl.yaml").write_text(GOOD + shared + tables)

    assert load_config(tmp_path / "etl.yaml", {}).table("public.t999").exclude == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8MB", 8_000_000),
        ("8MiB", 8 * 1024**2),
        ("8 mb", 8_000_000),
        ("0.5GiB", 2**29),
        ("4096", 4096),
        (4096, 4096),
        ("4096B", 4096),
    ],
)
def test_sizes_are_written_with_a_unit_or_without(text: str | int, size: int) -> None:
    """The same units as DuckDB's for its memory."""
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://db/shop", "publication": "pub"},
            "destination": {"type": "http", "url": "http://x", "max_body_bytes": text},
            "batch": {"max_bytes": text},
        },
        {},
    )

    assert config.batch.max_bytes == size
    assert vars(config.destination)["max_body_bytes"] == size


@pytest.mark.parametrize("size", ["9" * 400 + "MB", "8388608TiB"])
def test_a_size_beyond_64_bits_is_a_mistake(tmp_path: Path, size: str) -> None:
    [mistake] = mistakes(tmp_path, GOOD + f"batch: {{max_bytes: {size}}}\n")
    assert "batch.max_bytes: must be less than 8388608 TiB" in mistake


def test_a_large_size_is_exact(tmp_path: Path) -> None:
    (tmp_path / "etl.yaml").write_text(GOOD + "batch: {max_bytes: 9007199254740993B}\n")
    assert load_config(tmp_path / "etl.yaml", {}).batch.max_bytes == 9007199254740993


@pytest.mark.parametrize("number", [".inf", ".nan"])
def test_a_time_must_be_finite(tmp_path: Path, number: str) -> None:
    """A wait of infinite length is an OverflowError of the thread that waits."""
    [mistake] = mistakes(tmp_path, GOOD + f"meltano: {{interval_s: {number}}}\n")
    assert "meltano.interval_s: must be a finite number" in mistake


@pytest.mark.parametrize("limit", ["256MB", "1GiB", "256mb", 268435456, "'268435456'"])
def test_duckdb_takes_every_limit_that_is_accepted(tmp_path: Path, limit: str | int) -> None:
    import duckdb

    (tmp_path / "etl.yaml").write_text(GOOD + f"  memory_limit: {limit}\n")
    config = load_config(tmp_path / "etl.yaml", {})

    accepted = vars(config.destination)["memory_limit"]
    duckdb.connect().execute(f"SET memory_limit = '{accepted}'")


def test_aliases_and_merges_of_yaml_are_not_duplicates(tmp_path: Path) -> None:
    tables = "tables:\n  public.a: &t {copy: false}\n  public.b: {<<: *t}\n"
    (tmp_path / "etl.yaml").write_text(GOOD + tables)

    assert load_config(tmp_path / "etl.yaml", {}).table("public.b").copy_rows is False


def test_a_variable_that_is_not_set_is_one_mistake(tmp_path: Path) -> None:
    """What stands for it is not judged as well."""
    assert mistakes(tmp_path, GOOD + "salt: ${ETL_SALT}\n") == [
        "line 8: salt: the environment variable ETL_SALT is not set"
    ]
