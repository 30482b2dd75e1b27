"""Versions as storage resolves them, remembered with their compiled input schema."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from reprise.storage.v1 import model_pb2, model_pb2_grpc

from services.chassis.channels import Peer
from services.chassis.errors import FieldViolation, InvalidInput
from services.scheduler.settings import SchedulerSettings
from services.scheduler.validation import InputSchema

REFERENCE_LENGTH_MAX = 512


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What admission needs of a version."""

    version_id: str
    model: str
    hardware: str
    is_iterator: bool
    has_file_output: bool
    input_schema: InputSchema


@dataclass(frozen=True, slots=True)
class _CacheKey:
    account_id: str
    reference: str


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    version: KnownVersion
    # Monotonic; None for ever.
    expires_at: float | None


class Versions:
    """Resolves references; what names a version id never changes and is kept."""

    def __init__(self, settings: SchedulerSettings, storage: Peer) -> None:
        self._settings = settings
        self._storage = storage
        self._models = model_pb2_grpc.ModelServiceStub(storage.channel)
        self._cache: OrderedDict[_CacheKey, _CacheEntry] = OrderedDict()
        # One compiled schema for all references and accounts. Nothing else is shared: the same
        # content may be a version of several models, whose names are not everybody's to read.
        self._schemas: OrderedDict[str, InputSchema] = OrderedDict()
        self._resolving: dict[_CacheKey, asyncio.Lock] = {}

    async def resolve(self, account_id: str, reference: str) -> KnownVersion:
        """The version behind a reference; NotFound also for what this account may not see."""
        key = _CacheKey(account_id, reference)
        found = self._find(key)
        if found is not None:
            return found
        # Callers that miss together ask once.
        lock = self._resolving.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                return self._find(key) or await self._ask(key)
        finally:
            if not lock.locked():
                self._resolving.pop(key, None)

    def _find(self, key: _CacheKey) -> KnownVersion | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        if entry.expires_at is not None and time.monotonic() >= entry.expires_at:
            return None
        self._cache.move_to_end(key)
        return entry.version

    async def _ask(self, key: _CacheKey) -> KnownVersion:
        request = model_pb2.ResolveVersionRequest(
            reference=key.reference, account_id=key.account_id
        )
        response = await self._storage.call(
            self._models.ResolveVersion, request, timeout_s=self._settings.peer_timeout_s
        )
        version = await self._known(response.spec)
        is_latest = "/" in key.reference and ":" not in key.reference
        ttl_s = self._settings.latest_version_ttl_s
        self._cache[key] = _CacheEntry(version, time.monotonic() + ttl_s if is_latest else None)
        self._cache.move_to_end(key)
        self._trim()
        return version

    async def _known(self, spec: model_pb2.VersionSpec) -> KnownVersion:
        schema = self._schemas.get(spec.version_id)
        if schema is None:
            schema = await asyncio.to_thread(InputSchema, spec.openapi_schema.text)
            self._schemas[spec.version_id] = schema
        self._schemas.move_to_end(spec.version_id)
        return KnownVersion(
            version_id=spec.version_id,
            model=spec.model,
            hardware=spec.hardware,
            is_iterator=spec.is_iterator,
            has_file_output=spec.has_file_output,
            input_schema=schema,
        )

    def _trim(self) -> None:
        for cache in (self._cache, self._schemas):
            while len(cache) > self._settings.version_cache_size_max:
                cache.popitem(last=False)


def invalid_version(message: str) -> InvalidInput:
    """The refusal of a version that does not exist, or not for this caller."""
    return InvalidInput(
        message,
        reason="INVALID_VERSION",
        fields=[FieldViolation("version", message, "invalid_version")],
    )
