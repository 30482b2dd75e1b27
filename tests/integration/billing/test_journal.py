"""The journal between memory and disk: commits that fail, that got lost, and foreign writers."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from reprise.billing.v1 import ledger_pb2
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from services.billing.__main__ import MIGRATIONS
from services.billing.audit import audit
from services.billing.journal import Journal
from services.billing.ledger import Books, Entry
from services.billing.store import Store
from services.chassis.db import Database
from services.chassis.errors import Unavailable
from tests.integration.billing.process import BillingProcess, capture, new_hold, release

STARTING_CREDIT = 1_000_000


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'billing.db'}", MIGRATIONS)
    opened.migrate()
    yield opened
    assert await opened.read(audit) == []
    await opened.close()


async def open_journal(store: Store) -> Journal:
    journal = Journal(
        store,
        prices={"cpu": 100},
        starting_credit_micros=STARTING_CREDIT,
        currency="USD",
        now_us=count(1).__next__,
    )
    await journal.load()
    return journal


async def assert_is_on_disk(journal: Journal, database: Database) -> None:
    loaded = await Store(database).load()
    assert Books(loaded.balances, loaded.open_holds).balances() == journal.books.balances()


async def set_page_count_max(database: Database, count: int) -> int:
    """Bounds the size of the file: beyond it, SQLite says that the disk is full."""
    pragma = f"PRAGMA max_page_count = {count}"
    return int(
        await database.write(lambda connection: connection.exec_driver_sql(pragma).scalar_one())
    )


async def test_a_full_disk_refuses_holds_and_leaves_the_credit_as_it_was(
    database: Database,
) -> None:
    journal = await open_journal(Store(database))
    await journal.create_holds([new_hold("p0")])
    before = await journal.credit("alice")
    await set_page_count_max(database, 1)
    holds = [new_hold(f"p{number}", run_ms_max=10) for number in range(1, 900)]
    with pytest.raises(Unavailable):
        await journal.create_holds(holds)
    assert await journal.credit("alice") == before
    await assert_is_on_disk(journal, database)
    await set_page_count_max(database, 1_000_000)
    results = await journal.create_holds(holds)
    assert all(result.HasField("hold") for result in results)
    await assert_is_on_disk(journal, database)


async def test_a_full_disk_leaves_a_hold_to_be_settled_later(database: Database) -> None:
    journal = await open_journal(Store(database))
    holds = [new_hold(f"p{number}", run_ms_max=10) for number in range(900)]
    await journal.create_holds(holds)
    settlements = [capture(hold.hold_id, run_ms=10) for hold in holds]
    await set_page_count_max(database, 1)
    with pytest.raises(Unavailable):
        await journal.settle_holds(settlements)
    await set_page_count_max(database, 1_000_000)
    results = await journal.settle_holds(settlements)
    assert {result.receipt.captured_amount_micros for result in results} == {1}
    await assert_is_on_disk(journal, database)


class LossyStore(Store):
    """Where told so, the next commit does not happen, or happens but its answer is lost."""

    is_lossy = False
    is_broken = False

    async def append(self, entries: Sequence[Entry]) -> None:
        if self.is_broken:
            self.is_broken = False
            raise OperationalError("BEGIN", None, Exception("disk I/O error"))
        await super().append(entries)
        if self.is_lossy:
            self.is_lossy = False
            raise OperationalError("COMMIT", None, Exception("connection lost"))


async def test_a_commit_whose_answer_was_lost_counts(database: Database) -> None:
    store = LossyStore(database)
    journal = await open_journal(store)
    await journal.credit("alice")
    store.is_lossy = True
    (held,) = await journal.create_holds([new_hold("p1")])
    store.is_lossy = True
    (settled,) = await journal.settle_holds([capture("p1", run_ms=600)])
    assert (held.hold.amount_micros, settled.receipt.captured_amount_micros) == (100, 60)
    await assert_is_on_disk(journal, database)


async def test_a_failed_commit_is_not_taken_for_an_older_one_of_the_same_hold(
    database: Database,
) -> None:
    store = LossyStore(database)
    journal = await open_journal(store)
    await journal.create_holds([new_hold("p1")])
    await journal.settle_holds([release("p1")])
    store.is_broken = True
    with pytest.raises(Unavailable):
        await journal.create_holds([new_hold("p1"), new_hold("p2")])
    await assert_is_on_disk(journal, database)
    results = await journal.create_holds([new_hold("p1"), new_hold("p2")])
    assert [result.reason for result in results] == ["HOLD_SETTLED", ""]


async def test_a_caller_that_goes_away_leaves_books_and_disk_equal(database: Database) -> None:
    journal = await open_journal(Store(database))
    await journal.credit("alice")
    call = asyncio.create_task(journal.create_holds([new_hold("p1")]))
    # One turn of the loop: the commit is under way, the caller waits for it.
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (again,) = await journal.create_holds([new_hold("p1")])
    assert again.hold.amount_micros == 100
    await assert_is_on_disk(journal, database)


async def test_credit_under_way_cannot_be_spent(database: Database) -> None:
    journal = await open_journal(Store(database))
    await journal.credit("alice")
    paying_in = asyncio.create_task(
        journal.add_credit("credit:root:r1", account_id="alice", amount_micros=500, note="")
    )
    await asyncio.sleep(0)
    (refused,) = await journal.create_holds([new_hold("p1", run_ms_max=10_000_001)])
    assert refused.reason == "INSUFFICIENT_CREDIT"
    await paying_in
    (granted,) = await journal.create_holds([new_hold("p1", run_ms_max=10_000_001)])
    assert granted.hold.amount_micros == STARTING_CREDIT + 1


@pytest.mark.parametrize("seed", range(3))
async def test_random_concurrent_work_leaves_books_and_disk_equal(
    database: Database, seed: int
) -> None:
    journal = await open_journal(Store(database))
    chance = random.Random(seed)

    async def run(lane: int) -> None:
        for number in range(25):
            # Few ids and accounts, so that lanes meet.
            ids = [f"p{chance.randrange(60)}" for _ in range(chance.randrange(1, 9))]
            if chance.random() < 0.6:
                holds = [
                    new_hold(
                        hold_id,
                        "alice" if int(hold_id[1:]) % 2 else "bob",
                        run_ms_max=chance.randrange(1, 2_000_000),
                    )
                    for hold_id in ids
                ]
                # When lanes meet too often, a caller is told to call again.
                with suppress(Unavailable):
                    await journal.create_holds(holds)
            elif chance.random() < 0.8:
                await journal.settle_holds([_settlement(hold_id, chance) for hold_id in ids])
            else:
                await journal.add_credit(
                    f"credit:root:{lane}-{number}", account_id="bob", amount_micros=7, note=""
                )

    async with asyncio.TaskGroup() as lanes:
        for lane in range(8):
            lanes.create_task(run(lane))
    await assert_is_on_disk(journal, database)


def _settlement(hold_id: str, chance: random.Random) -> ledger_pb2.Settlement:
    if chance.random() < 0.3:
        return release(hold_id)
    return capture(hold_id, run_ms=chance.randrange(2_000_000))


async def test_a_foreign_writer_ends_the_process_which_then_loads_its_entries(
    billing_process: BillingProcess,
) -> None:
    await billing_process.credit("alice")
    engine = create_engine(billing_process.database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO ledger_entries SELECT 2, 'credit', 'credit:root:foreign', 'alice', "
                "false, NULL, 0, 0, '', 1"
            )
        )
        connection.execute(text("INSERT INTO ledger_postings VALUES (2, 'available:alice', 5)"))
        connection.execute(text("INSERT INTO ledger_postings VALUES (2, 'platform:funding', -5)"))
    engine.dispose()
    call = asyncio.create_task(billing_process.create_holds(new_hold("p1")))
    assert await billing_process.wait() != 0
    await billing_process.start()
    # The same call, still retrying, is answered by the new process.
    (held,) = await call
    assert held.hold.amount_micros == 100
    assert (await billing_process.credit("alice")).balance_micros == STARTING_CREDIT + 5
