"""Double entry: what each operation posts, and the books that follow from the postings.

Each entry's postings sum to zero, and no entry ever changes.
"""

from collections import Counter
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
    """Money would appear or vanish: a fault of ours, never of a caller.

    Raised instead of `assert`, which an interpreter option turns off.
    """


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

    kind: EntryKind
    # The hold's id; for credit, the id under which it is added once.
    operation_id: str
    account_id: str
    created_at_us: int
    postings: tuple[Posting, ...]
    # These three are empty for credit.
    hardware: str = ""
    price_micros_per_second: int = 0
    # The longest run of a hold, the charged run of a capture.
    run_ms: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        total = 0
        for posting in self.postings:
            total += posting.amount_micros
        if total != 0:
            raise BrokenLedger(f"the postings of {self.id} sum to {total}")

    @property
    def id(self) -> str:
        return entry_id(self.kind, self.operation_id)

    @property
    def is_settlement(self) -> bool:
        return self.kind is EntryKind.CAPTURE or self.kind is EntryKind.RELEASE

    @property
    def moved_micros(self) -> int:
        """What the entry moves: for a hold, the amount that is held."""
        moved = 0
        for posting in self.postings:
            if posting.amount_micros > 0:
                moved += posting.amount_micros
        return moved

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
    amount_micros: int
    settlement: Entry | None = None


def entry_id(kind: EntryKind, operation_id: str) -> str:
    """How an entry is named outside: "capture:<hold id>", and credit by its operation alone."""
    return operation_id if kind is EntryKind.CREDIT else f"{kind.value}:{operation_id}"


def credit_entry(
    operation_id: str, *, account_id: str, amount_micros: int, note: str, now_us: int
) -> Entry:
    """Money is paid in."""
    if amount_micros <= 0:
        raise BrokenLedger(f"credit of {amount_micros}")
    postings = (
        Posting(FUNDING, -amount_micros),
        Posting(available_of(account_id), amount_micros),
    )
    return Entry(
        kind=EntryKind.CREDIT,
        operation_id=operation_id,
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
        kind=EntryKind.HOLD,
        operation_id=hold_id,
        account_id=account_id,
        created_at_us=now_us,
        postings=_moves((available_of(account_id), -amount), (held_of(account_id), amount)),
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
    if not 0 <= taken.amount_micros <= amount:
        raise BrokenLedger(f"a capture of {taken.amount_micros} is beyond {held.id}")
    return Entry(
        kind=EntryKind.CAPTURE,
        operation_id=held.operation_id,
        account_id=account_id,
        created_at_us=now_us,
        postings=_moves(
            (held_of(account_id), -amount),
            (REVENUE, taken.amount_micros),
            (available_of(account_id), amount - taken.amount_micros),
        ),
        hardware=held.hardware,
        price_micros_per_second=price,
        run_ms=taken.charged_ms,
    )


def release_entry(hold: OpenHold, *, reason: str, now_us: int) -> Entry:
    """The whole hold is given back."""
    held, amount = hold.entry, hold.amount_micros
    return Entry(
        kind=EntryKind.RELEASE,
        operation_id=held.operation_id,
        account_id=held.account_id,
        created_at_us=now_us,
        postings=_moves(
            (held_of(held.account_id), -amount), (available_of(held.account_id), amount)
        ),
        hardware=held.hardware,
        price_micros_per_second=held.price_micros_per_second,
        run_ms=0,
        note=reason,
    )


def _moves(*moves: tuple[LedgerAccount, int]) -> tuple[Posting, ...]:
    """Postings of the moves that move something."""
    return tuple(Posting(ledger_account, amount) for ledger_account, amount in moves if amount)


def age_order(entry: Entry) -> tuple[int, str]:
    """Sorts entries by age, and those of one instant in one way."""
    return (entry.created_at_us, entry.operation_id)


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
        self.open_holds = {
            entry.operation_id: OpenHold(entry, entry.moved_micros) for entry in open_holds
        }
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

    def holds_older_than(self, created_at_us: int) -> list[Entry]:
        """Holds created before, unless they are being settled just now."""
        return [
            hold.entry
            for hold in self.open_holds.values()
            if hold.settlement is None and hold.entry.created_at_us < created_at_us
        ]

    def begin(self, entry: Entry) -> None:
        """An entry is about to be written: its debits count at once."""
        if entry.kind is EntryKind.HOLD:
            if entry.operation_id in self.open_holds:
                raise BrokenLedger(f"{entry.id} is open already")
        elif entry.is_settlement and self.open_holds[entry.operation_id].settlement is not None:
            raise BrokenLedger(f"{entry.id} settles a hold a second time")
        for posting in entry.postings:
            if posting.amount_micros < 0:
                self._begin_debit(entry, posting)
        if entry.kind is EntryKind.HOLD:
            self.open_holds[entry.operation_id] = OpenHold(entry, entry.moved_micros)
        elif entry.is_settlement:
            self.open_holds[entry.operation_id].settlement = entry

    def confirm(self, entry: Entry) -> None:
        """The entry is durable: its credits count as well."""
        for posting in entry.postings:
            account, amount = posting.ledger_account, posting.amount_micros
            self._balances[account] = self._balances.get(account, 0) + amount
            if amount < 0:
                self._debits_under_way[account] += amount
        if entry.is_settlement:
            del self.open_holds[entry.operation_id]

    def revert(self, entry: Entry) -> None:
        """The entry was not written: its debits never were."""
        for posting in entry.postings:
            if posting.amount_micros < 0:
                self._debits_under_way[posting.ledger_account] += posting.amount_micros
        if entry.kind is EntryKind.HOLD:
            del self.open_holds[entry.operation_id]
        elif entry.is_settlement:
            self.open_holds[entry.operation_id].settlement = None

    def _begin_debit(self, entry: Entry, posting: Posting) -> None:
        account, debit = posting.ledger_account, -posting.amount_micros
        floor = -FUNDING_MICROS_MAX if account == FUNDING else 0
        if self.spendable(account) - debit < floor:
            raise BrokenLedger(f"{entry.id} overdraws {account}")
        self._debits_under_way[account] = self._debits_under_way.get(account, 0) + debit

    def _verify_loaded(self) -> None:
        if sum(self._balances.values()) != 0:
            raise BrokenLedger("the balances do not sum to zero")
        held = Counter(
            {
                account: balance
                for account, balance in self._balances.items()
                if account.startswith("held:") and balance
            }
        )
        opened: Counter[LedgerAccount] = Counter()
        for hold in self.open_holds.values():
            opened[held_of(hold.entry.account_id)] += hold.amount_micros
        if held != opened:
            raise BrokenLedger("the held balances are not the sums of the open holds")
        for account, balance in self._balances.items():
            if balance < 0 and account != FUNDING:
                raise BrokenLedger(f"{account} is below zero")
