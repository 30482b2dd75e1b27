"""The one guarded way to a URL that a user gave: checked address, bounded size and time.

The address is resolved once, checked, and used: a name that answers otherwise later gains nothing.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from services.chassis.errors import FieldViolation, InvalidInput, file_too_large

REDIRECT_COUNT_MAX = 3
URL_LENGTH_MAX = 8192
CHUNK_SIZE = 256 * 2**10
CONNECT_TIMEOUT_S = 10.0

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"User-Agent": "reprise-fetch", "Accept": "*/*", "Accept-Encoding": "identity"}
_FILE_NAME = re.compile(r'filename="?([^";]{1,255})')
# Prefixes that carry an IPv4 address in an IPv6 one: the way around a check of the outer address.
_TUNNELS = tuple(
    ipaddress.ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class FetchedChunk:
    """Bytes of the content; type and name come with the first."""

    content: bytes
    content_type: str = ""
    name: str = ""


class Fetcher:
    """Fetches users' URLs from public addresses."""

    def __init__(
        self, *, size_max: int, timeout_s: float, allow_networks: Sequence[str] = ()
    ) -> None:
        self._size_max = size_max
        self._timeout_s = timeout_s
        self._allowed = tuple(ipaddress.ip_network(text) for text in allow_networks)

    async def fetch(self, url: str) -> AsyncIterator[FetchedChunk]:
        """The content of a URL; InvalidInput says why it cannot be had."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async for chunk in self._follow(url, deadline):
                yield chunk
        except TimeoutError:
            raise _refusal(url, f"did not answer whole within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise _refusal(url, f"cannot be fetched: {type(error).__name__}") from None

    async def _follow(self, url: str, deadline: float) -> AsyncIterator[FetchedChunk]:
        for _ in range(REDIRECT_COUNT_MAX + 1):
            parts = _split(url)
            addresses = await self._resolve(url, parts, deadline)
            left_s = deadline - asyncio.get_running_loop().time()
            async with (
                _open_session(addresses, left_s) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status in _REDIRECTS and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise _refusal(url, f"answered {response.status}")
                async for chunk in self._content(response, parts):
                    yield chunk
                return
        raise _refusal(url, f"redirects more than {REDIRECT_COUNT_MAX} times")

    async def _content(
        self, response: aiohttp.ClientResponse, parts: SplitResult
    ) -> AsyncIterator[FetchedChunk]:
        if (response.content_length or 0) > self._size_max:
            raise file_too_large(self._size_max)
        yield FetchedChunk(
            b"", response.headers.get("Content-Type", "")[:255], _name(response, parts)
        )
        size = 0
        async for chunk in response.content.iter_chunked(CHUNK_SIZE):
            size += len(chunk)
            if size > self._size_max:
                raise file_too_large(self._size_max)
            yield FetchedChunk(chunk)

    async def _resolve(self, url: str, parts: SplitResult, deadline: float) -> list[ResolveResult]:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise _refusal(url, "has a host name that cannot be resolved") from None
        for entry in found:
            if not self.is_allowed(str(entry[4][0])):
                raise _refusal(url, "points to an address that is not public")
        return [
            ResolveResult(
                hostname=host,
                host=str(entry[4][0]),
                port=port,
                family=entry[0],
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for entry in found
        ]

    def is_allowed(self, text: str) -> bool:
        """Whether an address may be called: public, or in a network that the operator allowed."""
        address: Address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed):
            return True
        if any(address in network for network in _TUNNELS):
            return False
        return address.is_global and not address.is_multicast and not address.is_reserved


class _PinnedResolver(AbstractResolver):
    """Knows one host: the addresses that were checked."""

    def __init__(self, addresses: list[ResolveResult]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host != self._addresses[0]["hostname"]:
            raise OSError(f"{host} was not checked")
        return self._addresses

    async def close(self) -> None:
        return None


def _open_session(addresses: list[ResolveResult], timeout_s: float) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        resolver=_PinnedResolver(addresses), use_dns_cache=False, force_close=True
    )
    timeout = aiohttp.ClientTimeout(total=max(timeout_s, 0.001), sock_connect=CONNECT_TIMEOUT_S)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def _split(url: str) -> SplitResult:
    if len(url) > URL_LENGTH_MAX:
        raise _refusal(url, f"is longer than {URL_LENGTH_MAX} characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _refusal(url, "is not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise _refusal(url, "must start with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise _refusal(url, "must not hold credentials")
    if not parts.hostname:
        raise _refusal(url, "has no host")
    if _is_odd_number(parts.hostname):
        raise _refusal(url, "has a host that is a number in an unusual spelling")
    return parts


def _is_odd_number(host: str) -> bool:
    """Whether a resolver may read the host as a number although it is no plain address."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    looks_numeric = last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last) is not None
    if not looks_numeric:
        return False
    try:
        return str(ipaddress.IPv4Address(host)) != host
    except ValueError:
        return True


def _name(response: aiohttp.ClientResponse, parts: SplitResult) -> str:
    match = _FILE_NAME.search(response.headers.get("Content-Disposition", ""))
    name = match[1] if match else unquote(parts.path.rpartition("/")[2])
    name = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in name if character.isprintable())[:100] or "file"


def _refusal(url: str, why: str) -> InvalidInput:
    shown = url.partition("?")[0].rpartition("@")[2][:200]
    violation = FieldViolation(field="url", description=f"{shown} {why}", kind="invalid_url")
    return InvalidInput(f"{shown} {why}", fields=[violation])
