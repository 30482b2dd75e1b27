"""The ledger's tables: entries are appended and read, never changed.

One process at a time may write them, because it keeps the balances in memory.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from reprise.billing.v1 import ledger_pb2
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    and_,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.exc import IntegrityError

from services.billing.ledger import (
    REVENUE,
    Entry,
    EntryKind,
    LedgerAccount,
    Posting,
    available_of,
    entry_id,
    held_of,
)
from services.chassis.db import Database
from services.chassis.paging import Order, Page, read_page

_METADATA = MetaData()
ENTRIES = Table(
    "ledger_entries",
    _METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text),
    Column("operation_id", Text),
    Column("account_id", Text),
    Column("is_settlement", Boolean),
    Column("hardware", Text),
    Column("price_micros_per_second", BigInteger),
    Column("run_ms", BigInteger),
    Column("note", Text),
    Column("created_at_us", BigInteger),
)
POSTINGS = Table(
    "ledger_postings",
    _METADATA,
    Column("entry_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("ledger_account", Text, primary_key=True),
    Column("amount_micros", BigInteger),
)
_NEWEST_FIRST = Order(columns=(ENTRIES.c.sequence,), label="ledger entries")
_LAST_SEQUENCE = "SELECT coalesce(max(sequence), 0) FROM ledger_entries"


class DuplicateEntry(Exception):
    """One of the entries is in the ledger already; none of them was added."""


class ForeignEntries(Exception):
    """Another process wrote to the ledger: the balances in memory are not to be trusted."""


@dataclass(frozen=True, slots=True)
class LoadedLedger:
    """What the books are built of when the process starts."""

    balances: dict[LedgerAccount, int]
    open_holds: list[Entry]


class Store:
    """Queries on the ledger's tables."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Only the writer thread touches it.
        self._last_sequence = 0

    async def load(self) -> LoadedLedger:
        """Sums of all postings, and the holds that are not settled."""
        return await self._database.write(self._load)

    async def append(self, entries: Sequence[Entry]) -> None:
        """Adds entries in one transaction; returns once they are durable."""
        await self._database.write(lambda connection: self._append(connection, entries))

    async def has_written(self, entries: Sequence[Entry]) -> bool:
        """Whether these very entries are in the ledger, and not others of the same operations."""
        query = select(
            ENTRIES.c.operation_id, ENTRIES.c.is_settlement, ENTRIES.c.created_at_us
        ).where(ENTRIES.c.operation_id.in_([entry.operation_id for entry in entries]))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        wanted = {
            (entry.operation_id, entry.is_settlement, entry.created_at_us) for entry in entries
        }
        return wanted <= {tuple(row) for row in rows}

    async def find(self, entry: Entry) -> Row[Any] | None:
        """The same entry, or what was written instead of it, with its `amount_micros`."""
        query = _entries_with_change_of(available_of(entry.account_id)).where(
            ENTRIES.c.operation_id == entry.operation_id,
            ENTRIES.c.is_settlement == entry.is_settlement,
        )
        return await self._database.read(lambda connection: connection.execute(query).first())

    async def find_receipts(self, hold_ids: Collection[str]) -> dict[str, ledger_pb2.Receipt]:
        """Receipts of those holds that are settled."""
        if not hold_ids:
            return {}
        query = _entries_with_change_of(REVENUE).where(
            ENTRIES.c.operation_id.in_(hold_ids), ENTRIES.c.is_settlement
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.operation_id: _receipt(row) for row in rows}

    async def list_entries(
        self, account_id: str, *, prediction_id: str, page_token: str, page_size: int
    ) -> Page:
        """An account's entries, newest first, each with its change of the available credit."""
        query = _entries_with_change_of(available_of(account_id))
        if prediction_id:
            # An account has any number of entries, a prediction two: the concatenation keeps the
            # planner from the account's index.
            is_own = ENTRIES.c.account_id.concat("") == account_id
            query = query.where(ENTRIES.c.operation_id == prediction_id, is_own)
        else:
            query = query.where(ENTRIES.c.account_id == account_id)

        def work(connection: Connection) -> Page:
            return read_page(
                connection, query, order=_NEWEST_FIRST, page_token=page_token, page_size=page_size
            )

        return await self._database.read(work)

    def _load(self, connection: Connection) -> LoadedLedger:
        self._last_sequence = _last_sequence(connection)
        sums = select(POSTINGS.c.ledger_account, func.sum(POSTINGS.c.amount_micros)).group_by(
            POSTINGS.c.ledger_account
        )
        balances = {
            LedgerAccount(account): int(total) for account, total in connection.execute(sums)
        }
        return LoadedLedger(balances, [_hold(row) for row in connection.execute(_open_holds())])

    def _append(self, connection: Connection, entries: Sequence[Entry]) -> None:
        last = _last_sequence(connection)
        # Less than remembered: a commit of ours was lost. More: somebody else writes, too.
        if last > self._last_sequence:
            raise ForeignEntries(f"entry {last} was not written by this process")
        rows = [_entry_row(sequence, entry) for sequence, entry in enumerate(entries, last + 1)]
        postings = [
            (sequence, posting.ledger_account, posting.amount_micros)
            for sequence, entry in enumerate(entries, last + 1)
            for posting in entry.postings
        ]
        try:
            _insert(connection, ENTRIES, rows)
        except IntegrityError as error:
            raise DuplicateEntry(str(error.orig)) from error
        if postings:
            _insert(connection, POSTINGS, postings)
        self._last_sequence = last + len(rows)


def _last_sequence(connection: Connection) -> int:
    return int(connection.exec_driver_sql(_LAST_SEQUENCE).scalar_one())


def _insert(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
    # Past SQLAlchemy's own insert, which costs more than the database's share of the work.
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(table.c.keys())
    marks = ", ".join([mark] * len(table.c))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(rows))


def _entry_row(sequence: int, entry: Entry) -> tuple[object, ...]:
    """In the order of the table's columns."""
    return (
        sequence,
        entry.kind.value,
        entry.operation_id,
        entry.account_id,
        entry.is_settlement,
        entry.hardware or None,
        entry.price_micros_per_second,
        entry.run_ms,
        entry.note,
        entry.created_at_us,
    )


def _entries_with_change_of(ledger_account: LedgerAccount) -> Select[Any]:
    return _entries_with_change(POSTINGS.c.ledger_account == ledger_account)


def _entries_with_change(is_wanted: ColumnElement[bool]) -> Select[Any]:
    amount = func.coalesce(POSTINGS.c.amount_micros, 0).label("amount_micros")
    joined = ENTRIES.outerjoin(
        POSTINGS, and_(POSTINGS.c.entry_sequence == ENTRIES.c.sequence, is_wanted)
    )
    return select(*ENTRIES.c, amount).select_from(joined)


def _open_holds() -> Select[Any]:
    settlement = ENTRIES.alias("settlement")
    is_settled = exists().where(
        settlement.c.operation_id == ENTRIES.c.operation_id, settlement.c.is_settlement
    )
    held = POSTINGS.c.ledger_account == literal(held_of("")).concat(ENTRIES.c.account_id)
    return _entries_with_change(held).where(ENTRIES.c.kind == EntryKind.HOLD.value, ~is_settled)


def _hold(row: Row[Any]) -> Entry:
    postings = (
        Posting(available_of(row.account_id), -row.amount_micros),
        Posting(held_of(row.account_id), row.amount_micros),
    )
    return Entry(
        kind=EntryKind.HOLD,
        operation_id=row.operation_id,
        account_id=row.account_id,
        created_at_us=row.created_at_us,
        postings=postings,
        hardware=row.hardware,
        price_micros_per_second=row.price_micros_per_second,
        run_ms=row.run_ms,
    )


def _receipt(row: Row[Any]) -> ledger_pb2.Receipt:
    return ledger_pb2.Receipt(
        ledger_entry_id=entry_id(EntryKind(row.kind), row.operation_id),
        captured_amount_micros=row.amount_micros,
        charged_ms=row.run_ms,
        is_captured=row.kind == EntryKind.CAPTURE.value,
    )
