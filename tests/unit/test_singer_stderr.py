"""What an error shows of a target's stderr: words, and neither rows nor secrets."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.singer.stderr import Tail, secrets_in
from tests.support.leaks import PASSWORD


def shown(line: str) -> str:
    tail = Tail({"s3cr3t"})
    tail.know({"orders", "amount"})
    return tail.shown(line)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("connection to db:5432 refused", "connection to db:5432 refused"),
        ('relation "orders" does not exist', 'relation "orders" does not exist'),
        ("psycopg.errors.DiskFull: no space left", "psycopg.errors.DiskFull: no space left"),
        ('  File "/opt/x/lib/python3.12/site-packages/a/b.py", line 1234, in load',
         "  a/b.py, line 1234, in load"),
    ],
)  # fmt: skip
def test_words_names_and_places_are_kept(line: str, kept: str) -> None:
    assert shown(line) == kept


@pytest.mark.parametrize(
    "line",
    [
        'invalid input syntax for type integer: "Miller"',
        "DETAIL:  Key (id)=(Miller) already exists.",
        "DETAIL:  Key (id, b)=(1, Miller (Jr.)) already exists.",
        '{"level": "error", "record": {"name": "Miller"}}',
        "[parameters: {'name': 'Miller'}]",
        "Record does not pass: {'name': 'Miller', 'nested': {'a': [1",
        "'Miller' is not of type 'integer'",
        "CONTEXT: COPY orders, line 1, column amount: \"Miller's",
        "value 4711471147114711 of Miller's is out of range \"Miller",
        "could not parse `Miller`",
    ],
)
def test_values_are_cut(line: str) -> None:
    found = shown(line.replace("of Miller's ", ""))

    assert "Miller" not in found
    assert "4711" not in found
    assert "…" in found


@pytest.mark.parametrize(
    "line", ["password s3cr3t refused", "postgresql://me:hunter2@db/x is down", "(s3cr3t)"]
)
def test_secrets_are_hidden(line: str) -> None:
    found = shown(line)

    assert "s3cr3t" not in found
    assert "hunter2" not in found
    assert "***" in found


def test_the_last_lines_are_kept_and_a_long_one_is_cut() -> None:
    tail = Tail()
    for number in range(100):
        tail.feed(b"line %d\n" % number)
    tail.feed(b"x" * 100_000)
    lines = tail.text().splitlines()

    assert lines[-2] == "line 99"
    assert len(lines) <= 12
    assert all(len(line) < 400 for line in lines)


def test_secrets_are_found_by_the_names_of_their_settings() -> None:
    settings = {
        "host": "db",
        "password": PASSWORD,
        "sqlalchemy_url": f"postgresql://u:{PASSWORD}@h/d",
        "ssh_tunnel": {"private_key": "KEY", "port": 22},
        "tokens": ["t0ken"],
        "use_copy": True,
    }

    assert secrets_in(settings) == {PASSWORD, f"postgresql://u:{PASSWORD}@h/d", "KEY", "t0ken"}
