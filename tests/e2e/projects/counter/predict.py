"""Streams numbers, with a pause between them."""

import time

from cog import BaseRunner, ConcatenateIterator, Input


class Predictor(BaseRunner):
    def run(
        self,
        count: int = Input(default=5, ge=0, le=10_000),
        pause_s: float = Input(default=0.0, ge=0, le=5),
        fail_at: int = Input(default=-1),
    ) -> ConcatenateIterator[str]:
        for number in range(count):
            if number == fail_at:
                raise ValueError(f"stopped at {number}")
            yield f"{number} "
            time.sleep(pause_s)
