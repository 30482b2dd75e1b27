"""The scheduler's tables: one method per query."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    RowMapping,
    SmallInteger,
    String,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from services.chassis.db import Database
from services.scheduler.record import PredictionRecord

_BIG = BigInteger()
_TYPES: Mapping[str, Any] = {
    "is_iterator": Boolean(),
    "has_file_output": Boolean(),
    "status": SmallInteger(),
    "attempt": Integer(),
    "fault_count": Integer(),
    "created_at": _BIG,
    "deadline_at": _BIG,
    "started_at": _BIG,
    "completed_at": _BIG,
    "settled_at": _BIG,
    "run_timeout_ms": _BIG,
    "price_micros_per_second": _BIG,
    "held_amount_micros": _BIG,
    "captured_amount_micros": _BIG,
    "charged_ms": _BIG,
}
COLUMNS = tuple(item.name for item in fields(PredictionRecord))
_metadata = MetaData()
predictions = Table(
    "predictions",
    _metadata,
    *(Column(name, _TYPES.get(name, Text()), primary_key=name == "id") for name in COLUMNS),
)
chunks = Table(
    "prediction_chunks",
    _metadata,
    Column("prediction_id", String(26), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("logs", Text),
    Column("items", Text),
)

_OF_ROW = predictions.c.id == bindparam("row_id")
_OPEN_ROW = and_(_OF_ROW, predictions.c.completed_at.is_(None))


def _update_of(condition: Any, names: Sequence[str]) -> Any:
    return (
        update(predictions)
        .where(condition)
        .values({name: bindparam(f"new_{name}") for name in names})
    )


_GRANTED = ("worker_id", "attempt")
_STARTED = ("status", "started_at")
_REQUEUED = ("status", "started_at", "worker_id", "fault_count")
_FINISHED = (
    "status", "worker_id", "started_at", "completed_at", "output", "logs", "error", "metrics",
    "charged_ms", "release_reason",
)  # fmt: skip
_SETTLED = ("settled_at", "ledger_entry_id", "captured_amount_micros", "charged_ms")

_GRANT = _update_of(_OPEN_ROW, _GRANTED)
_START = _update_of(_OPEN_ROW, _STARTED)
_REQUEUE = _update_of(_OPEN_ROW, _REQUEUED)
_FINISH = _update_of(_OPEN_ROW, _FINISHED)
_SETTLE = _update_of(_OF_ROW, _SETTLED)
_INSERT = insert(predictions)
_INSERT_CHUNKS = insert(chunks)
_DELETE_CHUNKS = delete(chunks).where(chunks.c.prediction_id == bindparam("row_id"))


class LostRow(RuntimeError):
    """A row that this process decided on was changed by somebody else."""


@dataclass(slots=True)
class Changes:
    """What one decision, or a batch of them, writes in one transaction."""

    started: list[dict[str, Any]] = field(default_factory=list)
    granted: list[dict[str, Any]] = field(default_factory=list)
    requeued: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    # Ids whose chunks are in the row now.
    consolidated: list[dict[str, Any]] = field(default_factory=list)

    def grant(self, record: PredictionRecord) -> None:
        self.granted.append(_values(record, _GRANTED))

    def start(self, record: PredictionRecord) -> None:
        self.started.append(_values(record, _STARTED))

    def requeue(self, record: PredictionRecord) -> None:
        self.requeued.append(_values(record, _REQUEUED))

    def finish(self, record: PredictionRecord) -> None:
        self.finished.append(_values(record, _FINISHED))

    def add_chunk(
        self, record: PredictionRecord, *, sequence: int, logs: str, items: Sequence[str]
    ) -> None:
        self.chunks.append(
            {
                "prediction_id": record.id,
                "attempt": record.attempt,
                "sequence": sequence,
                "logs": logs,
                "items": orjson.dumps(items).decode(),
            }
        )

    def consolidate(self, prediction_id: str) -> None:
        self.consolidated.append({"row_id": prediction_id})

    def __bool__(self) -> bool:
        return bool(self.started or self.granted or self.requeued or self.finished or self.chunks)


@dataclass(slots=True)
class StoredChunk:
    """Logs and items of one report."""

    attempt: int
    sequence: int
    logs: str
    items: list[str]


@dataclass(frozen=True, slots=True)
class Page:
    """Which predictions a list shows."""

    account_id: str
    limit: int
    created_after: int | None = None
    created_before: int | None = None
    source: str = ""
    # The row that the page starts after, exclusive; newest first.
    position: tuple[int, str] | None = None
    # The page before the position instead of the one after it.
    is_backward: bool = False


class PredictionStore:
    """Reads and writes of predictions and their chunks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, records: Sequence[PredictionRecord]) -> bool:
        """Stores new rows, all or none; False when one of the ids exists."""
        rows = [{name: getattr(record, name) for name in COLUMNS} for record in records]
        try:
            await self._database.write(lambda connection: connection.execute(_INSERT, rows))
        except IntegrityError:
            return False
        return True

    async def commit(self, changes: Changes) -> None:
        """Writes decisions; raises LostRow when a row has ended without this process."""
        await self._database.write(lambda connection: _apply(connection, changes))

    async def barrier(self) -> None:
        """Returns once everything written before is durable."""
        await self._database.write(lambda connection: None)

    async def settle(self, receipts: Sequence[Mapping[str, Any]]) -> None:
        """Notes receipts: id and the settled columns."""
        rows = [
            {"row_id": receipt["id"]} | {f"new_{name}": receipt[name] for name in _SETTLED}
            for receipt in receipts
        ]
        await self._database.write(lambda connection: connection.execute(_SETTLE, rows))

    async def load_unsettled(self) -> list[PredictionRecord]:
        """Every row that still runs or waits for its receipt, oldest first."""
        query = (
            select(predictions)
            .where(predictions.c.settled_at.is_(None))
            .order_by(predictions.c.created_at)
        )
        return await self._database.read(lambda connection: _records(connection, query))

    async def load_chunks(self) -> dict[str, list[StoredChunk]]:
        """All chunks by prediction, in order."""
        return await self._database.read(_load_chunks)

    async def get(self, prediction_id: str) -> PredictionRecord | None:
        query = select(predictions).where(predictions.c.id == prediction_id)
        found = await self._database.read(lambda connection: _records(connection, query))
        return found[0] if found else None

    async def existing(self, prediction_ids: Iterable[str]) -> set[str]:
        """Which of these ids have a row."""
        query = select(predictions.c.id).where(predictions.c.id.in_(list(prediction_ids)))
        return await self._database.read(
            lambda connection: set(connection.execute(query).scalars())
        )

    async def list_page(self, page: Page) -> list[PredictionRecord]:
        """One page, in the direction of reading: newest first, or oldest first when backward."""
        query = _page_query(page)
        return await self._database.read(lambda connection: _records(connection, query))


def _apply(connection: Connection, changes: Changes) -> None:
    for statement, rows in (
        (_START, changes.started),
        (_REQUEUE, changes.requeued),
        (_GRANT, changes.granted),
        (_FINISH, changes.finished),
    ):
        # The condition on the open row makes a second end impossible; memory must agree.
        if rows and connection.execute(statement, rows).rowcount != len(rows):
            raise LostRow("a prediction ended without this scheduler: is there a second one?")
    if changes.chunks:
        connection.execute(_INSERT_CHUNKS, changes.chunks)
    if changes.consolidated:
        connection.execute(_DELETE_CHUNKS, changes.consolidated)


def _values(record: PredictionRecord, names: Sequence[str]) -> dict[str, Any]:
    return {"row_id": record.id} | {f"new_{name}": getattr(record, name) for name in names}


def _records(connection: Connection, query: Any) -> list[PredictionRecord]:
    return [_record(row) for row in connection.execute(query).mappings()]


def _record(row: RowMapping) -> PredictionRecord:
    return PredictionRecord(**row)


def _load_chunks(connection: Connection) -> dict[str, list[StoredChunk]]:
    query = select(chunks).order_by(chunks.c.prediction_id, chunks.c.attempt, chunks.c.sequence)
    found: dict[str, list[StoredChunk]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        found[row["prediction_id"]].append(
            StoredChunk(row["attempt"], row["sequence"], row["logs"], orjson.loads(row["items"]))
        )
    return found


def _page_query(page: Page) -> Any:
    created_at, row_id = predictions.c.created_at, predictions.c.id
    query = select(predictions).where(predictions.c.account_id == page.account_id)
    if page.created_after is not None:
        query = query.where(created_at >= page.created_after)
    if page.created_before is not None:
        query = query.where(created_at < page.created_before)
    if page.source:
        query = query.where(predictions.c.source == page.source)
    if page.position is not None:
        at, last_id = page.position
        if page.is_backward:
            beyond = or_(created_at > at, and_(created_at == at, row_id > last_id))
        else:
            beyond = or_(created_at < at, and_(created_at == at, row_id < last_id))
        query = query.where(beyond)
    if page.is_backward:
        return query.order_by(created_at, row_id).limit(page.limit)
    return query.order_by(created_at.desc(), row_id.desc()).limit(page.limit)
