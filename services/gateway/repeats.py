"""Repeated posts of clients that give up and send again: the same request gets the same id."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MEMORY_SIZE_MAX = 10_000
MEMORY_AGE_S = 300.0
_RETRY_COUNT = b"x-stainless-retry-count"


@dataclass(frozen=True, slots=True)
class _First:
    request_id: str
    until: float


class RequestIds:
    """Gives each request an id, and a marked repeat the id of its first try."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._firsts: OrderedDict[bytes, _First] = OrderedDict()

    def assign(
        self, *, account_id: str, path: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> str:
        """The id that the request keeps over all retries."""
        retry_count = headers.get(_RETRY_COUNT)
        request_id = secrets.token_hex(16)
        if retry_count is None or not body:
            return request_id
        key = hashlib.sha256(b"\n".join((account_id.encode(), path.encode(), body))).digest()
        if retry_count != b"0":
            first = self._firsts.get(key)
            if first is not None and first.until > self._clock():
                return first.request_id
        self._firsts[key] = _First(request_id, self._clock() + MEMORY_AGE_S)
        self._firsts.move_to_end(key)
        if len(self._firsts) > MEMORY_SIZE_MAX:
            self._firsts.popitem(last=False)
        return request_id
