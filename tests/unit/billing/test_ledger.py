"""Double entry: postings sum to zero, money never appears, a hold is settled once."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from services.billing import ledger
from services.billing.ledger import (
    FUNDING,
    REVENUE,
    Books,
    BrokenLedger,
    Entry,
    EntryKind,
    OpenHold,
    Posting,
    available_of,
    held_of,
)

PRICE = 100
RUN_MS = st.integers(0, 1_000_000)


def credit(amount_micros: int, *, account_id: str = "alice", operation_id: str = "c:1") -> Entry:
    return ledger.credit_entry(
        operation_id, account_id=account_id, amount_micros=amount_micros, note="", now_us=1
    )


def hold(hold_id: str, run_ms_max: int, *, account_id: str = "alice") -> Entry:
    return ledger.hold_entry(
        hold_id,
        account_id=account_id,
        hardware="cpu",
        price_micros_per_second=PRICE,
        run_ms_max=run_ms_max,
        now_us=1,
    )


def post(books: Books, entry: Entry) -> Entry:
    books.begin(entry)
    books.confirm(entry)
    return entry


def books_with(credit_micros: int) -> Books:
    books = Books()
    post(books, credit(credit_micros))
    return books


def test_postings_that_do_not_sum_to_zero_are_no_entry() -> None:
    with pytest.raises(BrokenLedger, match="sum to 1"):
        Entry(
            kind=EntryKind.CREDIT,
            operation_id="c:1",
            account_id="alice",
            created_at_us=1,
            postings=(Posting(FUNDING, -4), Posting(available_of("alice"), 5)),
        )


@given(run_ms_max=RUN_MS, run_ms=RUN_MS)
def test_a_capture_takes_the_price_and_gives_the_rest_of_the_hold_back(
    run_ms_max: int, run_ms: int
) -> None:
    held = hold("p1", run_ms_max)
    capture = ledger.capture_entry(OpenHold(held, held.moved_micros), run_ms=run_ms, now_us=2)
    taken = capture.amount_on(REVENUE)
    assert taken == -(-min(run_ms, run_ms_max) * PRICE // 1000)
    assert capture.amount_on(held_of("alice")) == -held.moved_micros
    assert capture.amount_on(available_of("alice")) == held.moved_micros - taken
    assert capture.run_ms == min(run_ms, run_ms_max)


@given(run_ms_max=RUN_MS)
def test_a_release_gives_everything_back(run_ms_max: int) -> None:
    held = hold("p1", run_ms_max)
    opened = OpenHold(held, held.moved_micros)
    release = ledger.release_entry(opened, reason="worker_lost", now_us=2)
    assert release.amount_on(available_of("alice")) == held.moved_micros
    assert release.amount_on(REVENUE) == 0
    assert release.note == "worker_lost"


def test_a_hold_beyond_the_available_credit_breaks_the_ledger() -> None:
    books = books_with(100)
    with pytest.raises(BrokenLedger, match="overdraws available:alice"):
        books.begin(hold("p1", 1001))
    assert books.spendable(available_of("alice")) == 100
    assert not books.open_holds


def test_a_hold_counts_before_it_is_durable() -> None:
    books = books_with(100)
    books.begin(hold("p1", 600))
    assert books.spendable(available_of("alice")) == 40
    assert books.credit("alice").available_micros == 100
    with pytest.raises(BrokenLedger):
        books.begin(hold("p2", 600))


def test_credit_and_the_rest_of_a_hold_count_only_once_they_are_durable() -> None:
    books = books_with(100)
    post(books, hold("p1", 1000))
    settlement = ledger.release_entry(books.open_holds["p1"], reason="", now_us=2)
    books.begin(settlement)
    books.begin(credit(50, operation_id="c:2"))
    assert books.spendable(available_of("alice")) == 0
    books.confirm(settlement)
    assert books.spendable(available_of("alice")) == 100


def test_a_reverted_hold_leaves_no_trace() -> None:
    books = books_with(100)
    entry = hold("p1", 1000)
    books.begin(entry)
    books.revert(entry)
    assert books.spendable(available_of("alice")) == 100
    assert not books.open_holds


def test_a_reverted_settlement_leaves_the_hold_open() -> None:
    books = books_with(100)
    post(books, hold("p1", 1000))
    entry = ledger.capture_entry(books.open_holds["p1"], run_ms=10, now_us=2)
    books.begin(entry)
    books.revert(entry)
    post(books, ledger.capture_entry(books.open_holds["p1"], run_ms=20, now_us=3))
    assert books.balance(REVENUE) == 2


def test_a_hold_cannot_be_settled_a_second_time() -> None:
    books = books_with(100)
    post(books, hold("p1", 1000))
    opened = books.open_holds["p1"]
    books.begin(ledger.capture_entry(opened, run_ms=10, now_us=2))
    with pytest.raises(BrokenLedger, match="second time"):
        books.begin(ledger.release_entry(opened, reason="", now_us=2))


@pytest.mark.parametrize(
    ("balances", "problem"),
    [
        ({FUNDING: -5}, "sum to zero"),
        ({FUNDING: -5, available_of("alice"): 10, REVENUE: -5}, "below zero"),
        ({FUNDING: -5, held_of("alice"): 5}, "open holds"),
    ],
)
def test_books_that_do_not_add_up_are_not_loaded(
    balances: dict[ledger.LedgerAccount, int], problem: str
) -> None:
    with pytest.raises(BrokenLedger, match=problem):
        Books(balances)


def test_old_holds_are_found_without_those_that_are_being_settled() -> None:
    books = books_with(1000)
    for hold_id in ("p2", "p1", "p3"):
        post(books, hold(hold_id, 10))
    books.begin(ledger.release_entry(books.open_holds["p3"], reason="", now_us=2))
    assert {entry.operation_id for entry in books.holds_older_than(2)} == {"p1", "p2"}
    assert books.holds_older_than(1) == []


@dataclass
class Account:
    """The reference: one customer in three numbers."""

    paid_in: int = 0
    captured: int = 0
    # Sums of holds by their state on the way to the disk.
    held: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """Random operations, of which some fail to be written, against the reference."""

    pending = Bundle("pending")

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.entries: list[Entry] = []
        self.model = {"alice": Account(), "bob": Account()}
        self.count = 0

    @rule(account_id=st.sampled_from(["alice", "bob"]), amount=st.integers(1, 500), target=pending)
    def add_credit(self, account_id: str, amount: int) -> Entry:
        self.count += 1
        entry = credit(amount, account_id=account_id, operation_id=f"c:{self.count}")
        self.books.begin(entry)
        return entry

    @rule(account_id=st.sampled_from(["alice", "bob"]), run_ms=st.integers(0, 3000), target=pending)
    def hold(self, account_id: str, run_ms: int) -> object:
        self.count += 1
        entry = hold(f"p{self.count}", run_ms, account_id=account_id)
        if entry.moved_micros > self.books.spendable(available_of(account_id)):
            with pytest.raises(BrokenLedger):
                self.books.begin(entry)
            return multiple()
        self.books.begin(entry)
        return entry

    @rule(data=st.data(), run_ms=st.integers(-1, 4000), target=pending)
    def settle(self, data: st.DataObject, run_ms: int) -> object:
        durable = {entry.operation_id for entry in self.entries}
        ready = [
            opened
            for hold_id, opened in self.books.open_holds.items()
            if opened.settlement is None and hold_id in durable
        ]
        if not ready:
            return multiple()
        opened = data.draw(st.sampled_from(ready))
        if run_ms < 0:
            entry = ledger.release_entry(opened, reason="", now_us=2)
        else:
            entry = ledger.capture_entry(opened, run_ms=run_ms, now_us=2)
        self.books.begin(entry)
        return entry

    @rule(entry=consumes(pending))
    def commit(self, entry: Entry) -> None:
        self.books.confirm(entry)
        self.entries.append(entry)
        account = self.model[entry.account_id]
        match entry.kind:
            case EntryKind.CREDIT:
                account.paid_in += entry.moved_micros
            case EntryKind.HOLD:
                account.held += entry.moved_micros
            case EntryKind.CAPTURE | EntryKind.RELEASE:
                account.held += entry.amount_on(held_of(entry.account_id))
                account.captured += entry.amount_on(REVENUE)

    @rule(entry=consumes(pending))
    def fail(self, entry: Entry) -> None:
        self.books.revert(entry)

    @invariant()
    def the_books_are_the_reference(self) -> None:
        for account_id, account in self.model.items():
            found = self.books.credit(account_id)
            assert found.held_micros == account.held
            assert found.balance_micros == account.paid_in - account.captured
            assert 0 <= self.books.spendable(available_of(account_id)) <= found.available_micros
        assert self.books.balance(REVENUE) == sum(a.captured for a in self.model.values())
        assert self.books.balance(FUNDING) == -sum(a.paid_in for a in self.model.values())
        assert sum(self.books.balances().values()) == 0

    @invariant()
    def the_entries_give_the_same_books_again(self) -> None:
        again = Books()
        for entry in self.entries:
            post(again, entry)
        assert again.balances() == self.books.balances()


TestLedgerMachine = LedgerMachine.TestCase
