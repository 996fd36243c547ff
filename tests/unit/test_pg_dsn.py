"""A DSN is read as it was meant, or refused; and no message shows a secret."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.config import SourceConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.meltano.states.uri import locate_dsn
from etl_dagster.pg.connection import pinned_conninfo
from etl_dagster.pg.dsn import Dsn, DsnError, tcp_settings
from etl_dagster.source.connection import source_conninfo, source_uri
from etl_dagster.stores.postgres.config import PostgresStoreConfig
from etl_dagster.stores.postgres.connections import StoreConnections
from tests.support.leaks import make_secret

SECRET = make_secret("geheim")

WRONG = [
    (f"postgresql://u:{SECRET}@x@h/db", "more than one @"),
    (f"postgresql://u:{SECRET}/x@h/db", "an @ after the host"),
    (f"postgresql://u:1/{SECRET}@h/db", "an @ after the host"),
    (f"postgresql://h:{SECRET}/db", "the port is not a number"),
    (f"postgresql://u:{SECRET}%zz@h/db", "invalid percent-encoded token"),
    (f"postgresql://h/db?{SECRET}=1", "invalid URI query parameter"),
    (f"host=h {SECRET}", "not a libpq URI or key/value string"),
    (f"host=h password={SECRET} port=x", "the port is not a number"),
    ("host=h connect_timeout=-1", "the connect_timeout is not a number"),
    ("host=h sslmode=requir", "sslmode 'requir' is not one of disable, allow"),
]


@pytest.mark.parametrize(("text", "reason"), WRONG)
def test_a_mistake_is_named_without_any_part_of_the_dsn(text: str, reason: str) -> None:
    with pytest.raises(DsnError, match=reason) as refused:
        Dsn.parse(text)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize(("text", "reason"), WRONG)
def test_every_client_refuses_the_same(text: str, reason: str) -> None:
    """Before anything is connected: libpq would look up the piece of a password as a host."""
    clients = (
        lambda: source_conninfo(
            SourceConfig.model_validate({"dsn": text, "publication": "p"}), application_name="test"
        ),
        lambda: source_uri(SourceConfig.model_validate({"dsn": text, "publication": "p"})),
        lambda: StoreConnections(text, application_name="test", max_size=1),
        lambda: locate_dsn(text, "public"),
    )
    for client in clients:
        # The source's own timeout wins over that of its DSN.
        if "connect_timeout" in text and client in clients[:2]:
            continue
        with pytest.raises(EtlError, match=reason) as refused:
            client()
        assert SECRET not in str(refused.value) + refused.value.solution


def test_a_state_store_in_the_source_is_checked_as_the_source_is() -> None:
    source = SourceConfig.model_validate(
        {"dsn": f"postgresql://u:{SECRET}@x@h/d", "publication": "p"}
    )
    with pytest.raises(ConfigError, match=r"source.dsn: more than one @") as refused:
        PostgresStoreConfig().conninfo(source)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p%40ss%2F%3F@h/db", {"user": "u", "password": "p@ss/?", "host": "h"}),
        ("postgresql://u:pa:ss#@h/db", {"password": "pa:ss#"}),
        ("postgresql://a:1,b:2/db", {"host": "a,b", "port": "1,2"}),
        ("postgresql:///db?host=/run/pg", {"host": "/run/pg", "dbname": "db"}),
        ("host=h password='a b@c/d'", {"password": "a b@c/d"}),
        ("", {}),
    ],
)
def test_whatever_libpq_reads_is_read(text: str, expected: dict[str, str]) -> None:
    dsn = Dsn.parse(text)
    assert expected.items() <= dsn.parameters.items()
    assert conninfo_to_dict(dsn.conninfo()) == dsn.parameters


def test_a_zero_byte_would_end_the_text_for_libpq() -> None:
    with pytest.raises(DsnError, match="password has a NUL"):
        Dsn.of({"password": "a\0b"})


def test_a_shown_dsn_has_its_place_and_no_secret() -> None:
    dsn = Dsn.parse(f"postgresql://me:{SECRET}@h:1/my%20db?sslmode=require")
    assert dsn.uri == "postgresql://me@h:1/my%20db"
    assert dsn.shown == "h:1/my db"
    assert SECRET not in repr(dsn) + str(dsn)
    assert Dsn.parse("postgresql:///db?host=/run/pg").uri == "postgresql://%2Frun%2Fpg/db"
    assert Dsn.parse("service=shop").shown == "shop/"


@pytest.mark.parametrize(
    ("password", "text", "expected"),
    [
        (SECRET, f'no host "{SECRET}@x"', 'no host "***@x"'),
        ("a.b*", 'user "a.b*" failed', 'user "***" failed'),
        ("pw", "pwned by user pw", "pwned by user ***"),
        ("", "nothing to hide", "nothing to hide"),
    ],
)
def test_a_message_that_repeats_the_password_is_redacted(
    password: str, text: str, expected: str
) -> None:
    assert Dsn.of({"password": password}).redact(text) == expected


def test_settings_are_added_to_the_options_of_the_dsn() -> None:
    dsn = Dsn.parse("host=h options='-c geqo=off' application_name=mine")
    given = conninfo_to_dict(pinned_conninfo(dsn, {"DateStyle": "ISO"}, application_name="ours"))
    assert given["options"] == "-c geqo=off -c DateStyle=ISO"
    assert given["application_name"] == "ours"
    assert given["client_encoding"] == "UTF8"


def test_a_dsn_wins_over_defaults() -> None:
    dsn = Dsn.parse("host=h keepalives_idle=99").with_defaults(**tcp_settings(60))
    assert dsn.parameters == {
        "host": "h",
        "keepalives_idle": "99",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
    }
