"""Answers its text; sleeps, logs and fails as its input says."""

import sys
import time

from cog import BaseRunner, Input


class Predictor(BaseRunner):
    def run(
        self,
        text: str = Input(description="What to answer", default="hi"),
        sleep_s: float = Input(default=0.0, ge=0, le=60),
        log: str = Input(default=""),
        fail: str = Input(default=""),
        size: int = Input(default=1, ge=1, le=1000),
    ) -> str:
        if log:
            print(log, file=sys.stderr, flush=True)
        deadline = time.monotonic() + sleep_s
        while time.monotonic() < deadline:
            time.sleep(0.01)
        if fail:
            raise ValueError(fail)
        return text * size
