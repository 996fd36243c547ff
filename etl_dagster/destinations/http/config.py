"""The settings of an HTTP destination."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from etl_dagster.config import ByteCount, DestinationConfig

#: Format of the bodies; `formats` says what each can carry.
Format: TypeAlias = Literal[1, 2]
NEWEST: Final[Format] = 2

#: What the destination itself sends; a header of the configuration can't replace it.
RESERVED_HEADERS = frozenset(
    {
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "etl-signature",
        "host",
        "idempotency-key",
        "transfer-encoding",
    }
)
_TOKEN_CHARACTERS = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


class HttpDestinationConfig(DestinationConfig):
    """A server that takes rows and changes as JSON; it may be several behind one address."""

    type: Literal["http"]
    url: str = Field(description="The base URL; `rows`, `events` and `tables/...` are below it.")
    token: SecretStr | None = Field(None, description="Sent as `Authorization: Bearer ...`.")
    headers: dict[str, SecretStr] = Field({}, description="Further headers of every request.")
    hmac_secret: SecretStr | None = Field(
        None, description="Signs every body, in the header `Etl-Signature`."
    )
    format: Format = Field(
        NEWEST,
        description="Format of the bodies. 1 has no lists and objects: values with parts are sent "
        "as text, as with `nested: text`.",
    )
    gzip: bool = Field(False, description="Compress bodies; the receiver must expect that.")
    timeout_s: float = Field(
        30.0, gt=0, le=600, description="Time to connect, to send more, and for the whole answer."
    )
    max_attempts: int = Field(
        4, ge=1, le=20, description="Tries of one request, before the pipeline's own retries."
    )
    max_connections: int = Field(8, ge=1, le=256, description="Requests at a time.")
    max_body_bytes: ByteCount = Field(
        4 * 1024**2, ge=1024, description="Size of one body's rows or events, before compression."
    )
    verify: bool = Field(True, description="False accepts any certificate: for tests only.")
    ca_file: Path | None = Field(None, description="Certificates (PEM) to trust instead.")

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        return self.url

    @property
    def odd_values_at(self) -> str:
        return (
            f"They were sent to {self.url} with their rows: in the member odd of a body of rows, "
            "and in odd and old_odd of an event."
        )

    def refusal(self, choice: str) -> str | None:
        if self.format == 1 and choice in ("native", "json", "double"):
            return f"destination.format 1 can't carry {choice}; set it to text, or format to 2"
        return None

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        import httpx  # takes a tenth of a second, so only this type waits for it

        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018  (raises when it is not a number)
            httpx.URL(url)  # refuses more than that, here instead of at the first request
        except (ValueError, httpx.InvalidURL):
            raise ValueError("is not a URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a password; use token or headers")
        if parts.query or parts.fragment:
            raise ValueError("must not have a query or a fragment")
        return url.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not name or not set(name) <= _TOKEN_CHARACTERS:
                raise ValueError(f"{name!r} is not a header name")
            if name.lower() in RESERVED_HEADERS:
                raise ValueError(f"{name} is sent by the destination itself")
            _printable(value, f"the value of {name}")
        return headers

    @field_validator("token")
    @classmethod
    def _one_line(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            _printable(token, "it")
        return token

    @field_validator("hmac_secret")
    @classmethod
    def _not_empty(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not secret.get_secret_value():
            raise ValueError("must not be empty")
        return secret


def _printable(value: SecretStr, what: str) -> None:
    text = value.get_secret_value()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError(f"{what} must be printable ASCII, and not empty")
