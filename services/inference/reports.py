"""Tells the scheduler what happened to runs: at once when idle, else in batches."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reprise.inference.v1 import events_pb2

from services.chassis.errors import Unavailable
from services.inference.journal import RunJournal

_RETRY_DELAY_FIRST_S = 0.1
_RETRY_DELAY_MAX_S = 2.0

log = logging.getLogger(__name__)


Send = Callable[[events_pb2.RunsReported], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ReportLimits:
    report_max_bytes: int
    backlog_max_bytes: int
    log_interval_s: float


class Reporter:
    """One report is under way at a time; it is sent unchanged until it is acknowledged."""

    def __init__(self, send: Send, *, worker_id: str, limits: ReportLimits) -> None:
        """`send` raises Unavailable when no acknowledgement came."""
        self._send = send
        self._worker_id = worker_id
        self._limits = limits
        self._journals: dict[RunJournal, None] = {}
        self._backlog_bytes = 0
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, journal: RunJournal, size: int, *, is_urgent: bool) -> None:
        """`journal` has grown by `size`. What is not urgent may wait for `log_interval_s`."""
        self._journals[journal] = None
        self._backlog_bytes += size
        self._is_idle.clear()
        if self._backlog_bytes > self._limits.backlog_max_bytes:
            self._has_room.clear()
        if is_urgent:
            self._wake.set()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limits.log_interval_s, self._on_timer)

    def forget(self, journal: RunJournal) -> None:
        """Nothing more of this attempt is told."""
        self._shrink(journal.discard())
        self._journals.pop(journal, None)
        if not self._journals:
            self._wake.set()

    @property
    def has_room(self) -> bool:
        return self._has_room.is_set()

    async def wait_for_room(self) -> None:
        """Returns while the backlog is within its bound: models must not outrun the scheduler."""
        await self._has_room.wait()

    async def wait_until_idle(self) -> None:
        """Returns once everything noted was acknowledged."""
        await self._is_idle.wait()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._journals:
                await self._report_once()
            self._is_idle.set()

    async def _report_once(self) -> None:
        report = events_pb2.RunsReported(worker_id=self._worker_id)
        ended = self._fill(report)
        await self._deliver(report)
        for journal in ended:
            journal.on_reported()

    def _fill(self, report: events_pb2.RunsReported) -> list[RunJournal]:
        """Returns the journals whose last step is in the report."""
        events: list[events_pb2.RunEvent] = []
        ended = []
        size = 0
        for journal in list(self._journals):
            size += journal.take(self._limits.report_max_bytes - size, events)
            del self._journals[journal]
            if journal.has_pending:
                # To the end of the line: one that tells much must not silence the others.
                self._journals[journal] = None
                break
            if journal.is_closed:
                ended.append(journal)
        report.events.extend(events)
        self._shrink(size)
        return ended

    async def _deliver(self, report: events_pb2.RunsReported) -> None:
        if not report.events:
            return
        delay_s = _RETRY_DELAY_FIRST_S
        while True:
            try:
                await self._send(report)
                return
            except Unavailable as error:
                log.warning(
                    "report unanswered, sending it again",
                    extra={
                        "event": "report_unanswered",
                        "event_count": len(report.events),
                        "error": str(error),
                    },
                )
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RETRY_DELAY_MAX_S)

    def _on_timer(self) -> None:
        self._timer = None
        if self._journals:
            self._wake.set()

    def _shrink(self, size: int) -> None:
        self._backlog_bytes -= size
        if self._backlog_bytes <= self._limits.backlog_max_bytes:
            self._has_room.set()
