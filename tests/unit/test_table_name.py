"""Names of tables as text: two tables never have the same one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.model.schema import TableSchema
from etl_dagster.table_name import TableName

#: What Postgres allows: anything but the zero character, 63 bytes at most.
PARTS = st.one_of(
    st.text(
        st.sampled_from("ab.\"\\:U&- \n\t\u2028é日A+0{}[]*?/%$'`;,"),
        min_size=1,
        max_size=12,
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
).filter(lambda part: len(part.encode()) <= 63)
NAMES = st.builds(TableName, PARTS, PARTS)


def configured(tables: dict[str, object] | None = None) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://db/shop", "publication": "pub"},
            "destination": {"type": "memory"},
            "tables": tables or {},
        },
        {},
    )


@given(NAMES)
@example(TableName("a.b", "c"))
@example(TableName('U&"a', "b"))
@example(TableName("U&", '"'))
@example(TableName("a\\", "\\000A\n"))
@example(TableName("é" * 31, "👩‍🚀"))
def test_a_name_is_read_back_from_its_text(name: TableName) -> None:
    assert TableName.parse(str(name)) == name
    assert len(str(name).splitlines()) == 1, "a name never breaks a line"


def quoted(name: TableName) -> str:
    """The key of this table's settings: without quotes, ``*`` and ``?`` would be any character."""
    parts = (str(TableName("a", part))[2:] for part in (name.schema_name, name.table_name))
    return ".".join(part if part.endswith('"') else f'"{part}"' for part in parts)


@given(NAMES, NAMES)
@example(TableName("0", "?"), TableName("0", "0"))
@example(TableName("a.b", "c"), TableName("a", "b.c"))
@example(TableName("a", "b:c"), TableName("a", '"b:c"'))
def test_two_tables_share_no_text_no_state_id_and_no_settings(
    one: TableName, other: TableName
) -> None:
    config = configured({quoted(one): {"copy": False}})
    texts = [TableSchema(1, n.schema_name, n.table_name, ()).name for n in (one, other)]

    assert (texts[0] == texts[1]) == (one == other)
    assert (config.state_id(texts[0]) == config.state_id(texts[1])) == (one == other)
    assert config.table(texts[0]).copy_rows is False
    assert config.table(texts[1]).copy_rows is (one != other)


@pytest.mark.parametrize(
    "table", ["orders", "Order Details", "größe", "日本", "a-b", "it's", "100%", "a/b", "🍎", "$x"]
)
def test_ordinary_names_stay_as_they_are_written(table: str) -> None:
    """State IDs and settings of pipelines that exist must not change."""
    name = TableName("public", table)

    assert str(name) == f"public.{table}"
    assert configured().state_id(str(name)) == f"dev:shop-to-memory:public.{table}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('"a.b".c', TableName("a.b", "c")),
        ('a."b.c"', TableName("a", "b.c")),
        ('"public"."orders"', TableName("public", "orders")),
        ('public."say ""hi"""', TableName("public", 'say "hi"')),
        (r'public.U&"two\000Alines"', TableName("public", "two\nlines")),
        (r'public.U&"\+01F34E"', TableName("public", "🍎")),
        ("Public.Orders", TableName("Public", "Orders")),
        ("public.a:b", TableName("public", "a:b")),
        ('public.five"', TableName("public", 'five"')),
    ],
)
def test_names_as_people_write_them_are_read(text: str, name: TableName) -> None:
    assert TableName.parse(text) == name


@pytest.mark.parametrize("text", ["", "orders", ".orders", "public.", "a..b", '"a.b"', '"a".b.c'])
def test_a_text_that_does_not_name_a_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write tables as schema\.table"):
        TableName.parse(text)


def test_a_name_with_two_dots_is_refused_with_what_it_may_mean() -> None:
    with pytest.raises(ValueError, match=r'"a\.b"\.c') as refused:
        TableName.parse("a.b.c")

    assert 'write a."b.c" or "a.b".c' in str(refused.value)


def test_settings_may_name_a_table_in_any_spelling() -> None:
    config = configured({'"public"."orders"': {"copy": False}})

    assert config.table("public.orders").copy_rows is False
    assert list(config.tables) == ["public.orders"]


def test_a_table_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tables: public\.orders is named twice"):
        configured({"public.orders": {}, '"public".orders': {"copy": False}})
