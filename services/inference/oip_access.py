"""Who may call the tensor port, and which engine a name means; both remembered for a while."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from reprise.gateway.v1 import account_pb2, account_pb2_grpc
from reprise.storage.v1 import model_pb2

from services.chassis.channels import Peer
from services.chassis.errors import InvalidInput, NotFound, Unauthenticated
from services.inference.versions import Version, VersionCatalogue

_REMEMBERED_MAX = 10_000
_TOKEN_MAX = 512
_NAME_MAX = 256
_TIMEOUT_S = 5.0
_SCHEMES = ("bearer ", "token ")

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """Values with an end, the oldest dropped first."""

    def __init__(self, time_to_live_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._time_to_live_s = time_to_live_s
        self._clock = clock
        self._values: OrderedDict[str, tuple[float, Value]] = OrderedDict()

    def get(self, key: str) -> Value | None:
        found = self._values.get(key)
        if found is None or found[0] < self._clock():
            return None
        return found[1]

    def put(self, key: str, value: Value) -> None:
        self._values.pop(key, None)
        self._values[key] = (self._clock() + self._time_to_live_s, value)
        while len(self._values) > _REMEMBERED_MAX:
            self._values.popitem(last=False)

    def drop(self, key: str) -> None:
        self._values.pop(key, None)


class TokenCheck:
    """Tokens by their digest; a refusal is never remembered."""

    def __init__(self, gateway: Peer, *, time_to_live_s: float) -> None:
        self._gateway = gateway
        self._stub = account_pb2_grpc.AccountServiceStub(gateway.channel)
        self._accounts: Remembered[str] = Remembered(time_to_live_s)

    async def account_id(self, authorization: str) -> str:
        """Of the bearer. Raises Unauthenticated."""
        token = _token_of(authorization)
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._accounts.get(digest)
        if known is not None:
            return known
        answer = await self._gateway.call(
            self._stub.Authenticate,
            account_pb2.AuthenticateRequest(token=token),
            timeout_s=_TIMEOUT_S,
        )
        account_id: str = answer.account_id
        self._accounts.put(digest, account_id)
        return account_id

    def forget(self, token_digest: str) -> None:
        """The token was revoked."""
        self._accounts.drop(token_digest)


class EngineCatalogue:
    """Engine versions by the names that clients of the protocol use."""

    def __init__(self, versions: VersionCatalogue, *, time_to_live_s: float) -> None:
        self._versions = versions
        self._resolved: Remembered[Version] = Remembered(time_to_live_s)

    async def find(self, name: str, version: str, account_id: str) -> Version:
        """Raises NotFound, also for another account's private model and for a cog model."""
        if name.count("/") != 1 or len(name) + len(version) > _NAME_MAX:
            raise InvalidInput("the model's name is owner/name, with a version id or without")
        reference = f"{name}:{version}" if version else name
        key = f"{account_id} {reference}"
        found = self._resolved.get(key)
        if found is None:
            found = await self._versions.resolve(reference, account_id)
            self._resolved.put(key, found)
        if found.spec.kind != model_pb2.VERSION_KIND_ENGINE:
            raise NotFound(f"{name} is not an engine: run it by POST /v1/predictions")
        return found


def _token_of(authorization: str) -> str:
    lowered = authorization.lower()
    for scheme in _SCHEMES:
        if lowered.startswith(scheme) and len(authorization) <= _TOKEN_MAX:
            return authorization[len(scheme) :].strip()
    raise Unauthenticated("metadata `authorization: Bearer <API token>` is missing")
