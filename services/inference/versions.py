"""What the worker knows of versions: asked from storage once, since they never change."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import orjson
from reprise.storage.v1 import model_pb2, model_pb2_grpc

from services.chassis.channels import Peer
from services.inference.file_shapes import VersionShapes, read_shapes

_KEPT_COUNT = 512
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Version:
    """A version's record and where its schema has files."""

    spec: model_pb2.VersionSpec
    shapes: VersionShapes

    @property
    def id(self) -> str:
        return self.spec.version_id


class VersionCatalogue:
    """Leases name a version that its account may use: the scheduler has checked it before."""

    def __init__(self, storage: Peer) -> None:
        self._storage = storage
        self._stub = model_pb2_grpc.ModelServiceStub(storage.channel)
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, version_id: str, account_id: str) -> Version:
        version = self._versions.get(version_id)
        if version is not None:
            self._versions.move_to_end(version_id)
            return version
        lock = self._locks.setdefault(version_id, asyncio.Lock())
        try:
            async with lock:
                if version_id not in self._versions:
                    self._keep(await self.resolve(version_id, account_id))
        finally:
            self._locks.pop(version_id, None)
        return self._versions[version_id]

    async def resolve(self, reference: str, account_id: str) -> Version:
        """Asks storage, with the rights of the account. Raises NotFound."""
        answer = await self._storage.call(
            self._stub.ResolveVersion,
            model_pb2.ResolveVersionRequest(reference=reference, account_id=account_id),
            timeout_s=_TIMEOUT_S,
        )
        spec = answer.spec
        return Version(spec=spec, shapes=read_shapes(orjson.loads(spec.openapi_schema.text)))

    def _keep(self, version: Version) -> None:
        self._versions[version.id] = version
        while len(self._versions) > _KEPT_COUNT:
            self._versions.popitem(last=False)
