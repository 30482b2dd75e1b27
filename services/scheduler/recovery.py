"""A start: everything that had not ended, as the database has it."""

import time
from collections.abc import Sequence

from services.scheduler import lifecycle
from services.scheduler.fleet import Fleet
from services.scheduler.leases import LeaseKey
from services.scheduler.live import LivePrediction
from services.scheduler.record import PredictionRecord
from services.scheduler.runs import Runs
from services.scheduler.settlement import Settlements
from services.scheduler.store import PredictionStore, StoredChunk

_NO_LIMIT = 2**62


async def recover(
    *, store: PredictionStore, runs: Runs, fleet: Fleet, settlements: Settlements
) -> None:
    """Rebuilds what runs, waits and is unsettled.

    Workers with leases get a fresh time of grace: they report, or their leases are void.
    """
    chunks = await store.load_chunks()
    now = time.monotonic()
    for record in await store.load_unsettled():
        if lifecycle.is_final(record.status):
            settlements.add(record)
            continue
        live = restore(record, chunks.get(record.id, ()))
        if record.worker_id is not None:
            key = LeaseKey(record.id, record.attempt)
            fleet.adopt(record.worker_id, now).grant(key, record.version_id, now)
        runs.admit(live)


def restore(record: PredictionRecord, chunks: Sequence[StoredChunk]) -> LivePrediction:
    """A prediction with the logs and the output that were stored of it."""
    live = LivePrediction(record)
    if record.status == lifecycle.PROCESSING:
        # A stored start is the first step of its attempt.
        live.sequence = 1
    for chunk in chunks:
        live.has_chunks = True
        live.add_logs(chunk.logs, _NO_LIMIT)
        if chunk.attempt == record.attempt and record.worker_id is not None:
            live.add_items(chunk.items)
            live.sequence = max(live.sequence, chunk.sequence)
    return live
