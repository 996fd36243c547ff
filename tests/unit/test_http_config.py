"""The settings of an HTTP destination: mistakes are named, secrets are never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.http import HttpDestination, HttpDestinationConfig, verify_signature
from etl_dagster.destinations.http.signature import sign
from etl_dagster.errors import ConfigError, DestinationError
from tests.support.leaks import make_secret

SECRET = make_secret("s3cr3t-Pa55")


def settings(**more: Any) -> HttpDestinationConfig:
    return HttpDestinationConfig.model_validate(
        {"type": "http", "url": "https://example.com/in/", **more}
    )


def test_a_url_is_enough() -> None:
    assert settings().url == "https://example.com/in"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "ftp://example.com"),
        ("url", "example.com/in"),
        ("url", "https://"),
        ("url", "https://example.com:port"),
        ("url", "https://example.com/in\n"),
        ("url", "https://\0"),
        ("url", f"https://user:{SECRET}@example.com"),
        ("url", f"https://example.com/?token={SECRET}"),
        ("token", f"{SECRET}\n"),
        ("token", ""),
        ("hmac_secret", ""),
        ("headers", {"X Api Key": SECRET}),
        ("headers", {"X-Api-Key": f"{SECRET}\r\nHost: other"}),
        ("headers", {"Idempotency-Key": SECRET}),
        ("headers", {"authorization": SECRET}),
        ("timeout_s", 0),
        ("max_attempts", 0),
        ("max_connections", 0),
        ("max_body_bytes", 10),
        ("format", 3),
        ("retries", SECRET),
    ],
)
def test_a_mistake_names_its_key_and_repeats_no_value(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**{key: value})

    [error] = caught.value.errors(include_input=False)
    assert error["loc"][0] == key
    assert SECRET not in str(caught.value)


def test_secrets_are_in_no_text_about_the_destination() -> None:
    config = settings(token=SECRET, hmac_secret=SECRET, headers={"X-Api-Key": SECRET})
    destination = HttpDestination(
        "https://example.com", token=SECRET, hmac_secret=SECRET, headers={"X-Api-Key": SECRET}
    )

    texts = [repr(config), str(config), config.model_dump_json(), config.place]
    texts += [repr(destination), str(vars(destination)), str(vars(destination._client))]
    assert not [text for text in texts if SECRET in text]


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for file in (tmp_path / "missing.pem", empty):
        destination = HttpDestination("https://example.com", ca_file=file)
        with pytest.raises(DestinationError, match=file.name):
            destination.check()


@pytest.mark.parametrize("scheme", ["bogus", "socks5"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SOCKS proxy needs a package that isn't installed with this destination."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:{SECRET}@proxy.example.com:1080")
    destination = HttpDestination("http://192.0.2.1")
    with pytest.raises(DestinationError, match="proxy of the environment") as caught:
        destination.check()

    assert SECRET not in str(caught.value)
    assert "ALL_PROXY" in caught.value.solution


# -- the format --------------------------------------------------------------------------------


def pipeline(format: int, **more: Any) -> PipelineConfig:
    return parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://db/shop", "publication": "pub"},
            "destination": {"type": "http", "url": "https://example.com", "format": format},
            **more,
        },
        {},
    )


def test_in_format_1_values_with_parts_are_text() -> None:
    assert pipeline(2).nested_of("public.t", "c") == "native"
    assert pipeline(1).nested_of("public.t", "c") == "text"
    assert pipeline(1, nested="text").nested_of("public.t", "c") == "text"


def test_settings_that_format_1_cannot_carry_are_refused() -> None:
    columns = {"a": {"nested": "json"}, "b": {"numeric": "double"}, "c": {"nested": "text"}}
    asked = {"nested": "native", "tables": {"public.t": {"columns": columns}}}

    assert pipeline(2, **asked).nested == "native"
    with pytest.raises(ConfigError) as caught:
        pipeline(1, **asked)

    [mistake] = caught.value.mistakes
    assert mistake.startswith("nested: destination.format 1 can't carry native; set it to text")
    assert "tables.public.t.columns.a.nested: destination.format 1 can't carry json" in mistake
    assert "tables.public.t.columns.b.numeric: destination.format 1 can't carry double" in mistake
    assert "columns.c" not in mistake


# -- the signature -----------------------------------------------------------------------------

BODY = b'{"format":1}'


def test_the_signature_is_that_of_openssl() -> None:
    """printf '1732518562.{"format":1}' | openssl dgst -sha256 -hmac hush"""
    digest = "db76867ec01b05915eccb5d4074d0150b2d1465e376e6b1aa99a055c941d52f3"

    assert sign("hush", BODY, 1732518562) == f"t=1732518562,v1={digest}"


def test_a_signature_with_the_secret_is_valid_for_a_while() -> None:
    header = sign("hush", BODY, 1000)

    assert verify_signature("hush", header, BODY, 1299)
    assert verify_signature("hush", header, BODY, 701)
    assert not verify_signature("hush", header, BODY, 1301)
    assert verify_signature("hush", header, BODY, 1301, tolerance_s=600)


def test_any_other_signature_is_invalid() -> None:
    header = sign("hush", BODY, 1000)

    assert not verify_signature("hash", header, BODY, 1000)
    assert not verify_signature("hush", header, BODY + b" ", 1000)
    assert not verify_signature("hush", header.replace("t=1000", "t=1001"), BODY, 1001)


@given(st.text() | st.from_regex(r"t=\d+,v1=[0-9a-f]*", fullmatch=True))
def test_a_malformed_header_is_invalid_and_not_an_error(header: str) -> None:
    assert not verify_signature("hush", header, BODY, 1000)
