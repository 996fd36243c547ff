"""The signature of a body: it shows a receiver who sent it, when, and that it is complete.

    Etl-Signature: t=1732518562,v1=5257a869...

`t` is the time of sending in seconds since 1970-01-01 UTC. `v1` is the HMAC-SHA256, in lower-case
hexadecimal digits, of that number's digits, a full stop, and the body as it was sent (compressed,
if it is). The key is the secret in UTF-8.
"""

from __future__ import annotations

import hashlib
import hmac

HEADER = "Etl-Signature"


def sign(secret: str, body: bytes, time_s: int) -> str:
    """The value of the header for a body that is sent at `time_s`."""
    return f"t={time_s},v1={_digest(secret, body, time_s)}"


def verify_signature(
    secret: str, header: str, body: bytes, now_s: float, *, tolerance_s: float = 300
) -> bool:
    """Whether a sender that knows the secret sent this body within the last `tolerance_s` seconds.

    Args:
        body: as it arrived, before it is decompressed.
        now_s: seconds since 1970-01-01 UTC; clocks may differ by `tolerance_s`, too.
    """
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    time, given = parts.get("t", ""), parts.get("v1", "")
    if not (time.isascii() and time.isdecimal() and len(time) < 20 and given.isascii()):
        return False
    is_recent = abs(now_s - int(time)) <= tolerance_s
    return hmac.compare_digest(_digest(secret, body, int(time)), given) and is_recent


def _digest(secret: str, body: bytes, time_s: int) -> str:
    return hmac.new(secret.encode(), b"%d." % time_s + body, hashlib.sha256).hexdigest()
