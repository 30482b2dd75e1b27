"""Removes what has had its time: expired files, and ids of events that cannot come again."""

import asyncio
import logging

from services.chassis.clock import SECOND_US, Clock
from services.storage.blobs import BlobStore, file_key
from services.storage.file_store import FileStore
from services.storage.settings import StorageSettings
from services.storage.store import Catalogue

log = logging.getLogger(__name__)

FILES_PER_STEP = 500


class Sweeper:
    """Bytes go before their record, so that a crash in between leaves nothing unknown."""

    def __init__(
        self, files: FileStore, catalogue: Catalogue, blobs: BlobStore, settings: StorageSettings
    ) -> None:
        self._files = files
        self._catalogue = catalogue
        self._blobs = blobs
        self._settings = settings

    async def sweep(self, now: int) -> int:
        """Removes what has expired at that time; answers how many files."""
        count = 0
        while file_ids := await self._files.list_expired(now=now, limit=FILES_PER_STEP):
            for file_id in file_ids:
                await self._blobs.delete(file_key(file_id))
            await self._files.remove(file_ids)
            count += len(file_ids)
        await self._catalogue.forget_events(before=now - self._settings.event_memory_s * SECOND_US)
        return count

    async def run(self, clock: Clock) -> None:
        """Sweeps for ever; what one sweep could not remove waits for the next."""
        while True:
            try:
                count = await self.sweep(clock())
            except Exception:
                log.exception("sweep failed", extra={"event": "sweep_failed"})
            else:
                if count:
                    log.info(
                        "expired files removed", extra={"event": "files_expired", "count": count}
                    )
            await asyncio.sleep(self._settings.sweep_interval_s)
