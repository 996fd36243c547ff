"""Labels of enums, alone and in arrays as Postgres prints them."""

from __future__ import annotations

import pyarrow as pa

from etl_dagster.values.listed import labels_in
from etl_dagster.values.types import Array, Domain, Enum

MOOD = Enum(20000, "mood", ())
MOODS = Array(20001, "mood[]", MOOD)


def test_labels_of_an_enum_are_its_values() -> None:
    plain = pa.array(["sad", "happy", None, "sad"])
    assert labels_in(plain, MOOD) == ["sad", "happy"]
    assert labels_in(plain.dictionary_encode(), Domain(20002, "temper", MOOD)) == ["sad", "happy"]


def test_labels_in_arrays_are_read_out_of_their_texts() -> None:
    texts = pa.array(
        [
            "{sad,NULL,happy}",
            "{}",
            None,
            """[0:1]={"NULL","so, so"}""",
            r"""{{"a\"b","c\\"},{"{}",sad}}""",
        ]
    )
    assert labels_in(texts, MOODS) == ["sad", "happy", "NULL", "so, so", 'a"b', "c\\", "{}"]


def test_labels_in_arrays_of_a_domain_over_arrays_are_read_out_of_both() -> None:
    nested = Array(20004, "list[]", Domain(20003, "list", MOODS))
    texts = pa.array([r"""{"{sad,\"so, so\"}",{x}}"""])
    assert labels_in(texts, nested)[:2] == ["sad", "so, so"]
