"""Double entry: what each operation posts, and the books that follow from the postings.

Each entry's postings sum to zero, and no entry ever changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from services.billing import pricing

LedgerAccount = NewType("LedgerAccount", str)

REVENUE = LedgerAccount("platform:revenue")
# Its balance is minus everything that was ever paid in.
FUNDING = LedgerAccount("platform:funding")
# Bounds every balance, since none can pass what was paid in.
FUNDING_MICROS_MAX = 10**18


def available_of(account_id: str) -> LedgerAccount:
    """What the account may still spend."""
    return LedgerAccount(f"available:{account_id}")


def held_of(account_id: str) -> LedgerAccount:
    """What is reserved for the account's predictions."""
    return LedgerAccount(f"held:{account_id}")


class BrokenLedger(Exception):
    """Money would appear or vanish: a fault of ours, never of a caller."""


def _verify(is_true: bool, message: str) -> None:
    # Not `assert`: these hold in production, under every interpreter option.
    if not is_true:
        raise BrokenLedger(message)


class EntryKind(StrEnum):
    """What an entry did."""

    CREDIT = "credit"
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Posting:
    """A signed change of one ledger account."""

    ledger_account: LedgerAccount
    amount_micros: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One immutable operation on the books of one account."""

    id: str
    kind: EntryKind
    account_id: str
    created_at_us: int
    postings: tuple[Posting, ...]
    # These four are empty for credit.
    hold_id: str = ""
    hardware: str = ""
    price_micros_per_second: int = 0
    # The longest run of a hold, the charged run of a capture.
    run_ms: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        total = sum(posting.amount_micros for posting in self.postings)
        _verify(total == 0, f"the postings of {self.id} sum to {total}")
        is_credit = self.kind is EntryKind.CREDIT
        _verify(is_credit == (not self.hold_id), f"{self.id} must name a hold, unless it is credit")

    @property
    def is_settlement(self) -> bool:
        return self.kind in (EntryKind.CAPTURE, EntryKind.RELEASE)

    def amount_on(self, ledger_account: LedgerAccount) -> int:
        """The entry's change of one ledger account."""
        return sum(
            posting.amount_micros
            for posting in self.postings
            if posting.ledger_account == ledger_account
        )


@dataclass(frozen=True, slots=True)
class Credit:
    """An account's credit: balance = held + available."""

    held_micros: int
    available_micros: int

    @property
    def balance_micros(self) -> int:
        return self.held_micros + self.available_micros


@dataclass(slots=True)
class OpenHold:
    """A hold that is not settled durably; `settlement` is set while one is being written."""

    entry: Entry
    settlement: Entry | None = None

    @property
    def amount_micros(self) -> int:
        return self.entry.amount_on(held_of(self.entry.account_id))


def credit_entry(
    entry_id: str, *, account_id: str, amount_micros: int, note: str, now_us: int
) -> Entry:
    """Money is paid in."""
    _verify(amount_micros > 0, "credit must be positive")
    postings = (
        Posting(FUNDING, -amount_micros),
        Posting(available_of(account_id), amount_micros),
    )
    return Entry(
        id=entry_id,
        kind=EntryKind.CREDIT,
        account_id=account_id,
        created_at_us=now_us,
        postings=postings,
        note=note,
    )


def starting_credit_entry(account_id: str, *, amount_micros: int, now_us: int) -> Entry:
    """The credit that opens an account's ledger."""
    return credit_entry(
        f"starting_credit:{account_id}",
        account_id=account_id,
        amount_micros=amount_micros,
        note="Starting credit",
        now_us=now_us,
    )


def hold_entry(
    hold_id: str,
    *,
    account_id: str,
    hardware: str,
    price_micros_per_second: int,
    run_ms_max: int,
    now_us: int,
) -> Entry:
    """The price of the longest possible run is reserved."""
    amount = pricing.run_price(run_ms_max, price_micros_per_second=price_micros_per_second)
    return Entry(
        id=f"hold:{hold_id}",
        kind=EntryKind.HOLD,
        account_id=account_id,
        created_at_us=now_us,
        postings=_moves((available_of(account_id), -amount), (held_of(account_id), amount)),
        hold_id=hold_id,
        hardware=hardware,
        price_micros_per_second=price_micros_per_second,
        run_ms=run_ms_max,
    )


def capture_entry(hold: OpenHold, *, run_ms: int, now_us: int) -> Entry:
    """The price of the run is taken and the rest of the hold given back, in one operation."""
    held = hold.entry
    account_id, amount = held.account_id, hold.amount_micros
    price = held.price_micros_per_second
    taken = pricing.charge(run_ms, run_ms_max=held.run_ms, price_micros_per_second=price)
    _verify(0 <= taken.amount_micros <= amount, f"capture beyond the hold {held.id}")
    return Entry(
        id=f"capture:{held.hold_id}",
        kind=EntryKind.CAPTURE,
        account_id=account_id,
        created_at_us=now_us,
        postings=_moves(
            (held_of(account_id), -amount),
            (REVENUE, taken.amount_micros),
            (available_of(account_id), amount - taken.amount_micros),
        ),
        hold_id=held.hold_id,
        hardware=held.hardware,
        price_micros_per_second=price,
        run_ms=taken.charged_ms,
    )


def release_entry(hold: OpenHold, *, reason: str, now_us: int) -> Entry:
    """The whole hold is given back."""
    held, amount = hold.entry, hold.amount_micros
    return Entry(
        id=f"release:{held.hold_id}",
        kind=EntryKind.RELEASE,
        account_id=held.account_id,
        created_at_us=now_us,
        postings=_moves(
            (held_of(held.account_id), -amount), (available_of(held.account_id), amount)
        ),
        hold_id=held.hold_id,
        hardware=held.hardware,
        price_micros_per_second=held.price_micros_per_second,
        run_ms=0,
        note=reason,
    )


def _moves(*moves: tuple[LedgerAccount, int]) -> tuple[Posting, ...]:
    """Postings of the moves that move something."""
    return tuple(Posting(ledger_account, amount) for ledger_account, amount in moves if amount)


class Books:
    """Balances and open holds in memory: the durable ones, and what is being written.

    A debit counts from `begin`, a credit only from `confirm`: nothing is ever spent twice, and
    nothing is spent that a failed commit would take away again.
    """

    def __init__(
        self,
        balances: Mapping[LedgerAccount, int] | None = None,
        open_holds: Iterable[Entry] = (),
    ) -> None:
        self._balances: dict[LedgerAccount, int] = dict(balances or {})
        self._debits_under_way: dict[LedgerAccount, int] = {}
        self.open_holds = {entry.hold_id: OpenHold(entry) for entry in open_holds}
        self._verify_loaded()

    def is_open(self, account_id: str) -> bool:
        return available_of(account_id) in self._balances

    def credit(self, account_id: str) -> Credit:
        """The account's credit as the durable entries give it."""
        return Credit(
            held_micros=self.balance(held_of(account_id)),
            available_micros=self.balance(available_of(account_id)),
        )

    def balance(self, ledger_account: LedgerAccount) -> int:
        return self._balances.get(ledger_account, 0)

    def balances(self) -> dict[LedgerAccount, int]:
        """Every balance that is not zero."""
        return {account: balance for account, balance in self._balances.items() if balance}

    def spendable(self, ledger_account: LedgerAccount) -> int:
        """The balance less every debit that is still being written."""
        return self.balance(ledger_account) - self._debits_under_way.get(ledger_account, 0)

    def begin(self, entry: Entry) -> None:
        """An entry is about to be written: its debits count at once."""
        for posting in entry.postings:
            if posting.amount_micros < 0:
                self._begin_debit(entry, posting)
        if entry.kind is EntryKind.HOLD:
            _verify(entry.hold_id not in self.open_holds, f"{entry.id} is open already")
            self.open_holds[entry.hold_id] = OpenHold(entry)
        elif entry.is_settlement:
            hold = self.open_holds[entry.hold_id]
            _verify(hold.settlement is None, f"{entry.id} settles a hold a second time")
            hold.settlement = entry

    def confirm(self, entry: Entry) -> None:
        """The entry is durable: its credits count as well."""
        for posting in entry.postings:
            account, amount = posting.ledger_account, posting.amount_micros
            self._balances[account] = self._balances.get(account, 0) + amount
            if amount < 0:
                self._debits_under_way[account] += amount
        if entry.is_settlement:
            del self.open_holds[entry.hold_id]

    def revert(self, entry: Entry) -> None:
        """The entry was not written: its debits never were."""
        for posting in entry.postings:
            if posting.amount_micros < 0:
                self._debits_under_way[posting.ledger_account] += posting.amount_micros
        if entry.kind is EntryKind.HOLD:
            del self.open_holds[entry.hold_id]
        elif entry.is_settlement:
            self.open_holds[entry.hold_id].settlement = None

    def _begin_debit(self, entry: Entry, posting: Posting) -> None:
        account, debit = posting.ledger_account, -posting.amount_micros
        floor = -FUNDING_MICROS_MAX if account == FUNDING else 0
        _verify(self.spendable(account) - debit >= floor, f"{entry.id} overdraws {account}")
        self._debits_under_way[account] = self._debits_under_way.get(account, 0) + debit

    def _verify_loaded(self) -> None:
        _verify(sum(self._balances.values()) == 0, "the balances do not sum to zero")
        held: dict[LedgerAccount, int] = {}
        for hold in self.open_holds.values():
            account = held_of(hold.entry.account_id)
            held[account] = held.get(account, 0) + hold.amount_micros
        for account, balance in self._balances.items():
            _verify(balance >= 0 or account == FUNDING, f"{account} is below zero")
            if account.startswith("held:"):
                expected = held.pop(account, 0)
                _verify(balance == expected, f"{account} is {balance}, its holds are {expected}")
        _verify(not any(held.values()), "there are holds without a held balance")
