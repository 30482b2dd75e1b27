"""Answers its input, up to eight predictions at a time in one replica."""

import asyncio

from cog import BaseRunner, Input


class Predictor(BaseRunner):
    async def run(
        self,
        text: str = Input(description="What to answer", default="hi"),
        delay_s: float = Input(
            description="Seconds to wait first, to see predictions overlap",
            default=0.0,
            ge=0,
            le=60,
        ),
    ) -> str:
        if delay_s:
            await asyncio.sleep(delay_s)
        return text
