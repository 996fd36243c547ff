"""What replaces values that the destination must not have."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from etl_dagster.values.shapes import Mask

if TYPE_CHECKING:
    from etl_dagster.values.parsed import Odd


def hashed(texts: Any, salt: bytes) -> Any:
    """HMAC-SHA-256 of each text in UTF-8 under the salt, as 64 hexadecimal digits.

    Equal texts have equal hashes in all tables and columns, so that rows can still be joined. Each
    distinct text is hashed once.

    Args:
        texts: a string array; null stays null.
    """
    import pyarrow as pa

    encoded = texts.dictionary_encode()
    digest = hmac.digest
    digests: Any = pa.array(
        [digest(salt, text.encode(), "sha256").hex() for text in encoded.dictionary.to_pylist()],
        pa.string(),
    )
    return digests.take(encoded.indices)


def partly_hidden(texts: Any, mask: Mask) -> Any:
    """The first and last characters of each text, and one text in place of the others.

    A text that is not longer than the shown part is hidden completely. The result doesn't show how
    much is hidden.
    """
    import pyarrow.compute as pc

    compute: Any = pc
    none = pc_scalar("")
    first = compute.utf8_slice_codeunits(texts, 0, mask.first) if mask.first else none
    last = compute.utf8_slice_codeunits(texts, -mask.last) if mask.last else none
    shown = compute.binary_join_element_wise(first, pc_scalar(mask.text), last, pc_scalar(""))
    is_long = compute.greater(compute.utf8_length(texts), mask.first + mask.last)
    hidden = compute.if_else(is_long, shown, pc_scalar(mask.text))
    return compute.if_else(texts.is_valid(), hidden, None)


def pc_scalar(text: str) -> Any:
    """A string scalar."""
    import pyarrow as pa

    return pa.scalar(text, pa.string())


def with_odd_texts(texts: Any, odd: Odd | None) -> Any:
    """The texts as Postgres printed them, also of odd values."""
    import numpy as np
    import pyarrow as pa

    if odd is None:
        return texts
    source = np.arange(len(texts))
    source[odd.places] = len(texts) + np.arange(len(odd))
    joined: Any = pa.concat_arrays([texts, odd.texts.cast(texts.type)])
    return joined.take(pa.array(source))


@lru_cache(maxsize=16)
def salt_check(salt: bytes) -> str:
    """A check value that differs for another salt; slow, so that trying can't find the salt."""
    made = hashlib.scrypt(salt, salt=b"etl_dagster salt", n=2**14, r=8, p=1, dklen=8)
    return made.hex()
