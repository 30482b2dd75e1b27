"""API tokens: who calls, and may they."""

import asyncio
import hashlib
import secrets
import string
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reprise.wire.v1 import options_pb2

from services.chassis.errors import PermissionDenied
from services.gateway import problem

TOKEN_PREFIX = "rp_"
TOKEN_RANDOM_LENGTH = 40
TOKEN_LENGTH_MAX = 200
CACHE_SIZE_MAX = 10_000
# Bounds what a revocation can miss while the bus is away.
CACHE_AGE_MAX_S = 60.0
_ALPHABET = string.ascii_letters + string.digits
_SCHEMES = ("bearer", "token")


@dataclass(frozen=True, slots=True)
class Identity:
    """The account behind a token."""

    account_id: str
    is_operator: bool = False


ANONYMOUS = Identity("")

Lookup = Callable[[str], Awaitable[Identity | None]]


def new_token() -> str:
    """The text of a new API token."""
    return TOKEN_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(TOKEN_RANDOM_LENGTH))


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def token_of(authorization: str) -> str:
    """The token in an Authorization header; empty when there is none."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    return token if scheme.lower() in _SCHEMES and len(token) <= TOKEN_LENGTH_MAX else ""


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    until: float


class Authenticator:
    """Finds the account of a token: in memory, else in the database."""

    def __init__(self, lookup: Lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        # Counts what was forgotten: an answer read before a revocation must not be kept after it.
        self._revocation_count = 0
        self._lookups = asyncio.Semaphore(64)

    async def identify(self, authorization: str) -> Identity:
        """The caller; Unauthenticated for a token that is missing or unknown."""
        token = token_of(authorization)
        if not token:
            raise problem.unauthenticated()
        return await self.identify_token(token)

    async def identify_token(self, token: str) -> Identity:
        """The token's account; Unauthenticated for an unknown one."""
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None and known.until > self._clock():
            self._known.move_to_end(digest)
            return known.identity
        async with self._lookups:
            revocation_count = self._revocation_count
            identity = await self._lookup(digest)
        if identity is None:
            self._known.pop(digest, None)
            raise problem.unauthenticated()
        if revocation_count == self._revocation_count:
            self._remember(digest, identity)
        return identity

    def forget(self, digest: str) -> None:
        """A token was revoked."""
        self._revocation_count += 1
        self._known.pop(digest, None)

    def forget_all(self) -> None:
        """Revocations may have been missed."""
        self._revocation_count += 1
        self._known.clear()

    def _remember(self, digest: str, identity: Identity) -> None:
        self._known[digest] = _Known(identity, self._clock() + CACHE_AGE_MAX_S)
        self._known.move_to_end(digest)
        if len(self._known) > CACHE_SIZE_MAX:
            self._known.popitem(last=False)


def check_access(access: int, identity: Identity) -> None:
    """Refuses callers that the method's access option does not let in."""
    if access == options_pb2.ACCESS_OPERATOR and not identity.is_operator:
        raise PermissionDenied("Only an operator's token may do this.", reason="OPERATOR_ONLY")
