"""Where state lives: the documented URI, any URI of libpq's, and the settings that win over it."""

from __future__ import annotations

import pytest

from etl_dagster.integrations.meltano.states.errors import StateUriError
from etl_dagster.integrations.meltano.states.uri import locate
from tests.support.leaks import make_secret

SECRET = make_secret("geheim")


def parts(uri: str, **settings: str | int | None) -> dict[str, str]:
    """What libpq gets, without our defaults."""
    location = locate(uri, **settings)
    ours = locate("postgres://localhost").parameters.keys() - {"host"}
    found = location.parameters.items()
    asked = locate("postgres://x").parameters
    return {k: value for k, value in found if k not in ours or asked[k] != value}


def test_host_port_database_and_schema_come_from_the_uri() -> None:
    uri = "postgres://my_user:my_password@localhost:5432/my_database/my_schema"
    assert locate(uri).schema == "my_schema"
    assert parts(uri) == {
        "user": "my_user",
        "password": "my_password",
        "host": "localhost",
        "port": "5432",
        "dbname": "my_database",
    }


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_schemes_mean_the_same(scheme: str) -> None:
    assert parts(f"{scheme}://h/db/s") == {"host": "h", "dbname": "db"}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgres://h/db?sslmode=require", {"host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgres://h1:1,h2:2/db", {"host": "h1,h2", "port": "1,2", "dbname": "db"}),
        ("postgres:///db?host=/run/pg", {"host": "/run/pg", "dbname": "db"}),
        ("postgres://%2Frun%2Fpg/db", {"host": "/run/pg", "dbname": "db"}),
        ("postgres://?service=meltano", {"service": "meltano"}),
        ("postgres://[::1]:5/db", {"host": "::1", "port": "5", "dbname": "db"}),
        ("postgres://u@h", {"host": "h", "user": "u"}),
        ("postgres://", {"host": "localhost"}),
        ("postgres://u:p%40ss%2F%3A%23%25@h/a%20b", {"password": "p@ss/:#%", "dbname": "a b"}),
        ("postgres://h/db?connect_timeout=3", {"connect_timeout": "3"}),
    ],
)
def test_whatever_libpq_reads_is_read(uri: str, expected: dict[str, str]) -> None:
    found = parts(uri)
    assert expected.items() <= found.items()


def test_several_hosts_mean_the_one_that_takes_writes() -> None:
    assert parts("postgres://a,b/db")["target_session_attrs"] == "read-write"
    asked = parts("postgres://a,b/db?target_session_attrs=any")
    assert asked["target_session_attrs"] == "any"


@pytest.mark.parametrize(
    ("uri", "schema"),
    [
        ("postgres://h/db", "public"),
        ("postgres://h/db/", "public"),
        ("postgres://h/db/MyCase", "MyCase"),
        ("postgres://h/db/a%20b", "a b"),
        ("postgres://h/db?schema=other", "other"),
        ("postgres://h/db/first?schema=second", "first"),
        ('postgres://h/db/x"; drop table y; --', 'x"; drop table y; --'),
    ],
)
def test_the_schema_is_the_second_part_of_the_path_or_a_parameter(uri: str, schema: str) -> None:
    assert locate(uri).schema == schema


def test_a_setting_wins_over_the_uri_and_an_empty_one_does_not() -> None:
    uri = "postgres://u:p@h:1/db/s?sslmode=require"
    settings: dict[str, str | int | None] = {
        "host": "other",
        "port": 2,
        "user": "v",
        "password": "q",
        "database": "d2",
        "schema": "s2",
        "sslmode": "verify-full",
    }
    location = locate(uri, **settings)
    assert location.schema == "s2"
    assert {
        "host": "other",
        "port": "2",
        "user": "v",
        "password": "q",
        "dbname": "d2",
        "sslmode": "verify-full",
    }.items() <= location.parameters.items()

    unset: dict[str, str | int | None] = dict.fromkeys(settings, None) | {"host": ""}
    assert locate(uri, **unset) == locate(uri)


def test_a_host_of_its_own_drops_the_ports_of_the_hosts_it_replaces() -> None:
    assert "port" not in locate("postgres://a:1,b:2/db", host="c").parameters


def test_what_is_not_given_is_left_to_libpq() -> None:
    """So that PGPASSWORD, ~/.pgpass and the like count."""
    parameters = locate("postgres://").parameters
    assert not {"port", "user", "password", "dbname", "sslmode"} & set(parameters)


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE"])
def test_the_host_is_localhost_unless_libpq_is_told_another(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("postgres:///db").parameters["host"] == "localhost"
    assert "host" not in locate("postgres:///db?hostaddr=10.0.0.1").parameters
    assert "host" not in locate("postgres:///db?service=meltano").parameters
    monkeypatch.setenv(name, "somewhere")
    assert "host" not in locate("postgres:///db").parameters


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (f"mysql://u:{SECRET}@h/db", "scheme 'mysql'"),
        (f"postgres://u:{SECRET}@x@h/db", "more than one @"),
        (f"postgres://u:{SECRET}%zz@h/db", "invalid percent-encoded token"),
        (f"postgres://h/db?{SECRET}=1", "invalid URI query parameter"),
        (f"postgres://u:{SECRET}#@h/db", "a # must be written %23"),
        (f"postgres://h/db/schema/{SECRET}", "more than /database/schema"),
        (
            f"postgres://u:{SECRET}/1@h/db/s",
            "must be percent-encoded as %2F",
        ),
        (f"postgres://u:p@{SECRET}/{SECRET}@h/db", "an @ after the host"),
        (f"host=h password={SECRET}", "not a URI"),
        ("postgres://h/db?sslmode=requir", "sslmode 'requir' is not one of"),
    ],
)
def test_what_is_wrong_is_named_without_the_text(uri: str, reason: str) -> None:
    with pytest.raises(StateUriError, match=reason) as refused:
        locate(uri)
    assert SECRET not in str(refused.value) + refused.value.solution


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sslmode": "always"}, "sslmode 'always' is not one of"),
        ({"port": "abc"}, "port is not a number"),
        ({"connect_timeout": "-1"}, "connect_timeout is not a number"),
        ({"password": "a\0b"}, "password has a NUL"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(StateUriError, match=reason):
        locate("postgres://h/db", **settings)


def test_a_repr_shows_neither_user_nor_password() -> None:
    location = locate(f"postgres://person:{SECRET}@h:1/db/s")
    for text in (repr(location), str(location), location.shown):
        assert SECRET not in text
        assert "person" not in text
    assert location.shown == "h:1/db, schema s"
