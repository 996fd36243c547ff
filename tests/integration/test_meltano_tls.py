"""TLS settings reach libpq: encryption, the server's identity, a certificate as the password."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_dagster.config import SourceConfig
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.errors import EtlError
from etl_dagster.integrations.meltano.states.errors import StateStorageRefused
from etl_dagster.integrations.meltano.states.storage import StateStorage, locate
from etl_dagster.source.connection import connect
from etl_dagster.stores.postgres import PostgresStore

_DAYS = ["-days", "2", "-nodes", "-newkey", "rsa:2048"]


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a client's certificate by it, and a stranger's authority."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("authority", "stranger"):
        openssl("req", "-x509", "-subj", f"/CN={name}", *_DAYS, "-keyout", folder / f"{name}.key",
                "-out", folder / f"{name}.crt")  # fmt: skip
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "certified"):
        request = folder / f"{name}.csr"
        openssl("req", "-subj", f"/CN={name}", *_DAYS[2:], "-keyout", folder / f"{name}.key",
                "-out", request)  # fmt: skip
        openssl("x509", "-req", "-in", request, "-CA", folder / "authority.crt", "-CAkey",
                folder / "authority.key", "-CAcreateserial", "-days", "2", "-extfile", names,
                "-out", folder / f"{name}.crt")  # fmt: skip
        (folder / f"{name}.key").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def tls_server(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    """With TLS, and a role `certified` that gets in by its certificate only."""
    folder = tmp_path_factory.mktemp("tls")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o011)
    for binaries in find_servers():
        with (
            EmbeddedPostgres(folder / f"pg{binaries.major}", binaries, durable=False) as started,
            psycopg.connect(started.dsn(), autocommit=True) as admin,
        ):
            if not admin.execute("SHOW ssl_library").fetchone()[0]:  # type: ignore[index]
                continue
            [(data,)] = admin.execute("SHOW data_directory").fetchall()
            owner = Path(data).stat()
            for name in ("server.crt", "server.key", "authority.crt"):
                copied = shutil.copy(certificates / name, Path(data) / name)
                os.chmod(copied, 0o600)
                os.chown(copied, owner.st_uid, owner.st_gid)
            hba = Path(data) / "pg_hba.conf"
            hba.write_text(f"hostssl all certified all cert\n{hba.read_text()}")
            admin.execute("ALTER SYSTEM SET ssl_ca_file = 'authority.crt'")
            admin.execute("ALTER SYSTEM SET ssl = on")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("CREATE ROLE certified LOGIN; GRANT pg_read_all_data TO certified")
            yield started
            return
    pytest.skip("no PostgreSQL with TLS here")


def open_with(tls_server: EmbeddedPostgres, query: str = "", **settings: str | int) -> StateStorage:
    parts = conninfo_to_dict(tls_server.dsn())
    login = f"{parts['user']}:{parts['password']}"
    uri = f"postgres://{login}@127.0.0.1:{parts['port']}/postgres{query}"
    return StateStorage(locate(uri, **settings))


def encrypted(storage: StateStorage) -> bool:
    storage.migrate()
    query = sql.SQL("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    with psycopg.connect(**storage.location.parameters) as connection:  # type: ignore[arg-type]
        [(answer,)] = connection.execute(query).fetchall()
    return bool(answer)


def test_the_mode_of_a_setting_or_of_the_uri_counts(tls_server: EmbeddedPostgres) -> None:
    assert encrypted(open_with(tls_server))  # prefer is libpq's default
    assert encrypted(open_with(tls_server, "?sslmode=require"))
    assert not encrypted(open_with(tls_server, "?sslmode=disable"))
    assert not encrypted(open_with(tls_server, "?sslmode=require", sslmode="disable"))


def test_the_servers_certificate_must_be_signed_by_the_authority(
    tls_server: EmbeddedPostgres, certificates: Path
) -> None:
    right, wrong = (str(certificates / f"{name}.crt") for name in ("authority", "stranger"))
    assert encrypted(open_with(tls_server, sslmode="verify-full", sslrootcert=right))
    assert encrypted(open_with(tls_server, f"?sslmode=verify-full&sslrootcert={right}"))
    with pytest.raises(StateStorageRefused, match="certificate verify failed") as refused:
        open_with(tls_server, sslmode="verify-full", sslrootcert=wrong).list_ids()
    assert not refused.value.retryable


def open_source(dsn: str) -> None:
    config = SourceConfig.model_validate({"dsn": dsn, "publication": "p"})
    connect(config, application_name="test").close()


@pytest.mark.parametrize(
    "open_it", [open_source, lambda dsn: PostgresStore(dsn, "shop").open()], ids=["source", "store"]
)
def test_every_client_refuses_a_server_whose_certificate_the_authority_did_not_sign(
    tls_server: EmbeddedPostgres, certificates: Path, open_it: Callable[[str], None]
) -> None:
    """libpq gives no SQLSTATE for it; the server is not unreachable, which waiting would cure."""
    wrong = {"sslmode": "verify-full", "sslrootcert": str(certificates / "stranger.crt")}
    dsn = make_conninfo(tls_server.dsn(), host="127.0.0.1", **wrong)
    with pytest.raises(EtlError, match="certificate verify failed") as refused:
        open_it(dsn)
    assert not refused.value.retryable
    assert "certificates" in refused.value.solution


def test_a_client_certificate_takes_the_place_of_a_password(
    tls_server: EmbeddedPostgres, certificates: Path
) -> None:
    files = {
        "sslcert": str(certificates / "certified.crt"),
        "sslkey": str(certificates / "certified.key"),
    }
    port = conninfo_to_dict(tls_server.dsn())["port"]
    uri = f"postgres://certified@127.0.0.1:{port}/postgres?sslmode=require"
    open_with(tls_server).migrate()
    assert StateStorage(locate(uri, **files)).list_ids() == []
    with pytest.raises(StateStorageRefused, match="certificate"):
        StateStorage(locate(uri)).list_ids()
