"""Predictions that have not ended, in memory, with everybody who waits for them."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from reprise.scheduler.v1 import prediction_pb2

from services.scheduler.record import PredictionRecord, to_message

_TRUNCATED = "\n[logs truncated]\n"


class LivePrediction:
    """One prediction from its admission to the commit of its end."""

    __slots__ = (
        "_changed", "_ended", "_retained", "_size_of_logs", "change_count", "deadline_timer",
        "has_chunks", "is_ending", "items", "items_size", "logs", "record", "sequence",
    )  # fmt: skip

    def __init__(self, record: PredictionRecord) -> None:
        self.record = record
        # The end is decided and being committed: nothing else may change it.
        self.is_ending = False
        # Of the last step of the current attempt.
        self.sequence = 0
        self.items: list[str] = []
        self.items_size = 0
        self.logs: list[str] = []
        self.has_chunks = False
        self.deadline_timer: asyncio.TimerHandle | None = None
        # Grows with each change that watchers are told of.
        self.change_count = 0
        self._size_of_logs = 0
        # Items of a lost attempt, shown until the next one has caught up: outputs only grow.
        self._retained: list[str] = []
        self._ended: list[asyncio.Future[bool]] = []
        self._changed: list[asyncio.Future[bool]] = []

    @property
    def is_done(self) -> bool:
        """Whether the end is committed."""
        return self.record.completed_at is not None

    @property
    def shown_items(self) -> list[str]:
        """Output items as callers see them."""
        return self.items if len(self.items) >= len(self._retained) else self._retained

    def add_logs(self, text: str, size_max: int) -> str:
        """Appends to the logs; answers what was kept of the text."""
        if self._size_of_logs >= size_max:
            return ""
        room = size_max - self._size_of_logs
        self._size_of_logs += len(text)
        kept = text if len(text) <= room else text[:room] + _TRUNCATED
        self.logs.append(kept)
        return kept

    def add_items(self, items: list[str]) -> None:
        """Appends output items, each a JSON text."""
        self.items.extend(items)
        self.items_size += sum(map(len, items))

    def void_attempt(self) -> None:
        """Forgets what the lost attempt reported, but for what callers have seen."""
        self._retained = self.shown_items
        self.items = []
        self.items_size = 0
        self.sequence = 0

    def logs_text(self) -> str:
        if len(self.logs) > 1:
            self.logs = ["".join(self.logs)]
        return self.logs[0] if self.logs else ""

    def snapshot(self) -> PredictionRecord:
        """The record with output and logs so far."""
        if self.is_done or not (self.logs or self.shown_items):
            return self.record
        items = self.shown_items
        output = f"[{','.join(items)}]" if self.record.is_iterator and items else None
        return replace(self.record, logs=self.logs_text(), output=output)

    def message(self, stream_key: bytes) -> prediction_pb2.Prediction:
        return to_message(self.snapshot(), stream_key)

    async def wait_end(self, timeout_s: float) -> bool:
        """Whether the prediction ended within the time."""
        return self.is_done or await _wait(self._ended, timeout_s)

    async def wait_change(self, seen_count: int, timeout_s: float) -> bool:
        """Whether anything changed since a change_count that was read, within the time."""
        if self.is_done or self.change_count != seen_count:
            return True
        return await _wait(self._changed, timeout_s)

    def wake_changed(self) -> None:
        """Tells watchers that there is something new."""
        self.change_count += 1
        if self._changed:
            _wake(self._changed)

    def wake_all(self) -> None:
        """Tells everybody that the end is committed."""
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        _wake(self._ended)
        _wake(self._changed)


class LivePredictions:
    """All predictions that have not ended, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, LivePrediction] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LivePrediction]:
        return iter(self._by_id.values())

    def __contains__(self, prediction_id: object) -> bool:
        return prediction_id in self._by_id

    def add(self, live: LivePrediction) -> None:
        assert live.record.id not in self._by_id
        self._by_id[live.record.id] = live

    def get(self, prediction_id: str) -> LivePrediction | None:
        return self._by_id.get(prediction_id)

    def remove(self, prediction_id: str) -> None:
        del self._by_id[prediction_id]


async def _wait(waiters: list[asyncio.Future[bool]], timeout_s: float) -> bool:
    if timeout_s <= 0:
        return False
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[bool] = loop.create_future()
    waiters.append(waiter)
    timer = loop.call_later(timeout_s, _resolve, waiter, False)
    try:
        return await waiter
    finally:
        timer.cancel()
        if waiter in waiters:
            waiters.remove(waiter)


def _wake(waiters: list[asyncio.Future[bool]]) -> None:
    woken, waiters[:] = waiters[:], []
    for waiter in woken:
        _resolve(waiter, True)


def _resolve(waiter: asyncio.Future[bool], is_woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(is_woken)
