"""What the source reports of an alteration comes before the rows that follow it."""

from __future__ import annotations

from etl_dagster.protocol.alterations import ALTERATION_PREFIX
from etl_dagster.source.trigger import install
from tests.support.database import PUBLICATION, Database


def test_alterations_come_before_the_rows_after_them_in_the_transaction(
    database: Database,
) -> None:
    database.execute(
        "create table fruit (id int primary key, weight int)",
        "insert into fruit values (1, 1)",
        f"create publication {PUBLICATION} for table fruit",
    )
    with database.connect() as connection:
        install(connection)
        connection.execute("select pg_create_logical_replication_slot('peeked', 'pgoutput')")
        with connection.transaction():
            # Each row is the very next thing that is written after its alteration.
            connection.execute("alter table fruit drop column weight")
            connection.execute("insert into fruit values (2)")
            connection.execute("alter table fruit add column weight int")
            connection.execute("update fruit set weight = 3 where id = 1")
        connection.execute("set synchronous_commit = on")
        connection.execute("create table flushed ()")
    messages = [
        data
        for (data,) in database.query(
            "select data from pg_logical_slot_peek_binary_changes('peeked', null, null,"
            f" 'proto_version', '1', 'publication_names', '{PUBLICATION}', 'messages', 'true')"
        )
    ]
    kinds = [
        "alteration" if ALTERATION_PREFIX.encode() in data else chr(data[0])
        for data in messages
        if data[:1] in (b"I", b"U") or ALTERATION_PREFIX.encode() in data
    ]
    assert kinds == ["alteration", "I", "alteration", "U"]
