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
    Row,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from services.chassis.db import Database
from services.chassis.paging import Order, Page, read_page
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


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """Logs and items of one report."""

    attempt: int
    sequence: int
    logs: str
    items: list[str]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which predictions a list shows."""

    account_id: str
    created_after: int | None = None
    created_before: int | None = None
    source: str = ""


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

    async def list_page(self, filters: Filters, *, page_token: str, page_size: int) -> Page:
        """One page of an account's predictions, newest first."""
        kept = {"after": filters.created_after, "before": filters.created_before}
        order = Order(
            columns=(predictions.c.created_at, predictions.c.id),
            label="predictions",
            kept={name: value for name, value in kept.items() if value is not None}
            | ({"source": filters.source} if filters.source else {}),
        )
        query = _filtered(filters)
        return await self._database.read(
            lambda connection: read_page(
                connection, query, order=order, page_token=page_token, page_size=page_size
            )
        )


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
    return [record_of(row) for row in connection.execute(query)]


def record_of(row: Row[Any]) -> PredictionRecord:
    """The record that a row of predictions holds."""
    return PredictionRecord(**row._mapping)


def _load_chunks(connection: Connection) -> dict[str, list[StoredChunk]]:
    query = select(chunks).order_by(chunks.c.prediction_id, chunks.c.attempt, chunks.c.sequence)
    found: dict[str, list[StoredChunk]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        found[row["prediction_id"]].append(
            StoredChunk(row["attempt"], row["sequence"], row["logs"], orjson.loads(row["items"]))
        )
    return found


def _filtered(filters: Filters) -> Select[Any]:
    query = select(predictions).where(predictions.c.account_id == filters.account_id)
    if filters.created_after is not None:
        query = query.where(predictions.c.created_at >= filters.created_after)
    if filters.created_before is not None:
        query = query.where(predictions.c.created_at < filters.created_before)
    if filters.source:
        query = query.where(predictions.c.source == filters.source)
    return query
