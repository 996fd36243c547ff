"""What differs between two sides, from hashes alone."""

from __future__ import annotations

import numpy as np
import pytest

from etl_dagster.runtime.comparing.sums import Buckets, Details, Verdict, bucket_of, slices
from etl_dagster.values.digest import Hashes

#: Keys that are in buckets of their own, and rows with these keys.
KEYS = np.arange(1, 9, dtype=np.uint64) << np.uint64(50)
ROWS = KEYS + np.uint64(3)


def hashes(*numbers: int) -> Hashes:
    return np.array(numbers, np.uint64)


def details(keys: Hashes, rows: Hashes) -> Details:
    made = Details(np.unique(bucket_of(KEYS)))
    made.add(keys, rows)
    return made


def told(verdict: Verdict) -> tuple[int, int, int, list[int]]:
    return verdict.missing, verdict.extra, verdict.changed, verdict.unjudged.tolist()


def test_sides_with_the_same_rows_in_another_order_and_different_batches_are_equal() -> None:
    one, other = Buckets(), Buckets()
    one.add(KEYS, ROWS)
    other.add(KEYS[4:], ROWS[4:])
    other.add(KEYS[:4][::-1], ROWS[:4][::-1])
    assert one.differing(other).tolist() == []
    assert one.row_count == 8


def test_a_bucket_differs_by_an_extra_a_missing_or_a_changed_row() -> None:
    one, other = Buckets(), Buckets()
    one.add(KEYS[:3], ROWS[:3])
    other.add(KEYS[1:4], ROWS[1:4] + np.array([0, 1, 0], np.uint64))
    assert one.differing(other).tolist() == bucket_of(KEYS[[0, 2, 3]]).tolist()


def test_a_row_whose_hash_is_zero_counts() -> None:
    one, other = Buckets(), Buckets()
    one.add(KEYS[:1], hashes(0))
    assert one.differing(other).tolist() == bucket_of(KEYS[:1]).tolist()


def test_rows_are_missing_too_many_or_have_other_values() -> None:
    source = details(KEYS[:4], ROWS[:4])
    there = details(KEYS[2:6], ROWS[2:6] + np.array([0, 1, 0, 0], np.uint64))
    nothing = np.empty(0, np.uint64)
    assert told(source.compare(there, nothing)) == (2, 2, 1, [])
    assert told(source.compare(details(KEYS[:0], ROWS[:0]), nothing)) == (4, 0, 0, [])
    assert told(source.compare(source, nothing)) == (0, 0, 0, [])


def test_a_key_that_was_changed_meanwhile_is_not_judged() -> None:
    source, there = details(KEYS[:4], ROWS[:4]), details(KEYS[2:6], ROWS[2:6])
    assert told(source.compare(there, KEYS[[0, 2, 5]])) == (1, 1, 0, KEYS[[0, 5]].tolist())


def test_only_requested_keys_are_judged() -> None:
    source, there = details(KEYS[:4], ROWS[:4]), details(KEYS[2:6], ROWS[2:6])
    nothing = np.empty(0, np.uint64)
    assert told(source.compare(there, nothing, only=KEYS[[1, 2]])) == (1, 0, 0, [])


def test_rows_without_a_key_are_counted_as_often_as_they_are_there() -> None:
    source = details(ROWS[[0, 0, 0, 1]], ROWS[[0, 0, 0, 1]])
    there = details(ROWS[[0, 1, 1]], ROWS[[0, 1, 1]])
    assert told(source.compare(there, np.empty(0, np.uint64))) == (2, 1, 0, [])


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_slices_hold_every_bucket_once_and_few_rows_each(rows_at_once: int) -> None:
    ours, theirs = Buckets(), Buckets()
    ours.add(KEYS, ROWS)
    buckets = ours.differing(theirs)
    parts = slices(buckets, ours, theirs, rows_at_once)
    assert np.concatenate(parts).tolist() == buckets.tolist()
    assert all(0 < ours.counts[part].sum() <= rows_at_once for part in parts)
    assert slices(buckets[:0], ours, theirs, 1) == []
