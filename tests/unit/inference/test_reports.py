"""Reports: at once when idle, batches while one is unanswered, repeats unchanged."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from reprise.inference.v1 import events_pb2

from services.inference.journal import RunJournal
from services.inference.reports import Reporter, ReportLimits
from tests.unit.inference.fakes import WAIT_S, Outbox

LIMITS = ReportLimits(report_max_bytes=10_000, backlog_max_bytes=50_000, log_interval_s=0.05)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
async def reporter(outbox: Outbox) -> AsyncIterator[Reporter]:
    reporter = Reporter(outbox.send, worker_id="w", limits=LIMITS)
    task = asyncio.create_task(reporter.run())
    yield reporter
    task.cancel()
    await asyncio.wait({task})


def completed(reporter: Reporter, name: str, reported: list[str]) -> RunJournal:
    journal = RunJournal(name, 1, lambda: reported.append(name))
    reporter.note(journal, journal.started(), is_urgent=False)
    done = events_pb2.RunCompleted(outcome=events_pb2.RUN_OUTCOME_SUCCEEDED)
    reporter.note(journal, journal.completed(done), is_urgent=True)
    return journal


async def idle(reporter: Reporter) -> None:
    async with asyncio.timeout(WAIT_S):
        await reporter.wait_until_idle()


async def test_a_completed_run_leaves_at_once_and_is_called_back_after_the_acknowledgement(
    reporter: Reporter, outbox: Outbox
) -> None:
    reported: list[str] = []
    completed(reporter, "p", reported)
    assert reported == []
    await idle(reporter)
    assert reported == ["p"]
    assert [len(report.events) for report in outbox.reports] == [2]


async def test_what_happens_while_a_report_is_unanswered_leaves_in_one_report() -> None:
    gate = asyncio.Event()
    first_sent = asyncio.Event()
    sizes: list[int] = []

    async def send(report: events_pb2.RunsReported) -> None:
        sizes.append(len(report.events))
        first_sent.set()
        await gate.wait()

    reporter = Reporter(send, worker_id="w", limits=LIMITS)
    task = asyncio.create_task(reporter.run())
    reported: list[str] = []
    completed(reporter, "first", reported)
    await first_sent.wait()
    for number in range(5):
        completed(reporter, f"p{number}", reported)
    gate.set()
    await idle(reporter)
    assert sizes == [2, 10]
    assert len(reported) == 6
    task.cancel()


async def test_an_unanswered_report_is_repeated_unchanged_until_it_is_acknowledged(
    reporter: Reporter, outbox: Outbox
) -> None:
    outbox.is_deaf = True
    reported: list[str] = []
    completed(reporter, "p", reported)
    await outbox.until(lambda: len(outbox.reports) == 2)
    completed(reporter, "q", reported)
    await outbox.until(lambda: len(outbox.reports) == 3)
    assert reported == []
    outbox.is_deaf = False
    await idle(reporter)
    same = outbox.reports[:-1]
    assert all(report == same[0] for report in same)
    assert [event.prediction_id for event in outbox.reports[-1].events] == ["q", "q"]
    assert reported == ["p", "q"]


async def test_log_lines_wait_for_company(reporter: Reporter, outbox: Outbox) -> None:
    journal = RunJournal("p", 1, lambda: None)
    for _ in range(10):
        reporter.note(journal, journal.logged("line\n"), is_urgent=False)
        await asyncio.sleep(0)
    await idle(reporter)
    assert [event.logged.text for event in outbox.events()] == ["line\n" * 10]


async def test_a_report_has_a_size_limit_and_nothing_is_lost(
    reporter: Reporter, outbox: Outbox
) -> None:
    journal = RunJournal("p", 1, lambda: None)
    for number in range(10):
        kind = journal.logged if number % 2 else journal.output
        reporter.note(journal, kind("x" * 4_000), is_urgent=True)
    await idle(reporter)
    assert len(outbox.events()) == 10
    assert all(report.ByteSize() <= LIMITS.report_max_bytes for report in outbox.reports)


async def test_a_talkative_run_is_made_to_wait_and_goes_on_after_the_acknowledgement(
    reporter: Reporter, outbox: Outbox
) -> None:
    outbox.is_deaf = True
    journal = RunJournal("p", 1, lambda: None)
    reporter.note(journal, journal.logged("x" * 60_000), is_urgent=False)
    waiting = asyncio.create_task(reporter.wait_for_room())
    await asyncio.wait({waiting}, timeout=0.01)
    assert not waiting.done()
    outbox.is_deaf = False
    async with asyncio.timeout(WAIT_S):
        await waiting


async def test_an_abandoned_run_is_not_told_any_more(reporter: Reporter, outbox: Outbox) -> None:
    journal = RunJournal("p", 1, lambda: None)
    reporter.note(journal, journal.logged("line"), is_urgent=False)
    reporter.forget(journal)
    await idle(reporter)
    assert outbox.reports == []
