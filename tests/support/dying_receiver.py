"""`small_receiver` that dies now and then, after the commit and before the answer."""

from __future__ import annotations

import os
import random

from tests.support import small_receiver


class DyingHandler(small_receiver.Handler):
    def answer(self, body: bytes, status: int = 200) -> None:
        if self.command == "POST" and random.random() < 0.05:
            os._exit(9)
        super().answer(body, status)


if __name__ == "__main__":
    small_receiver.main(DyingHandler)
