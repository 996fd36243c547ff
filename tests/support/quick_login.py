"""Logins that cost less: each connection of a client hashes the password as often as the server
asks for, 4096 times by default, which takes longer than most of what tests do with it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

import psycopg
from psycopg import sql

from etl_dagster.demo.server import SUPERUSER, EmbeddedPostgres


def hash_password_once(server: EmbeddedPostgres) -> None:
    """Have the server keep the superuser's password as hashed once."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(SUPERUSER), _verifier(server.password)
            )
        )


def _verifier(password: str) -> str:
    """As in pg_authid.rolpassword.

    Source: PostgreSQL documentation, "pg_authid"; RFC 5802, section 3.
    """
    salt, iterations = secrets.token_bytes(16), 1
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"
