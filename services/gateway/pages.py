"""The small web page, kept in memory, and the health check."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from services.gateway.web import Exchange, Header

_DIRECTORY = Path(__file__).parent / "page"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# Outputs may be data URLs or signed URLs of this server; nothing comes from elsewhere.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data: https:; media-src 'self' data: https:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDS: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    etag: bytes
    headers: tuple[Header, ...]


class Pages:
    """Files by path; nothing is read from disk after the start."""

    def __init__(self) -> None:
        files = {path.name: _load(path) for path in _DIRECTORY.iterdir() if path.suffix in _TYPES}
        self._index = files["index.html"]
        self._assets = {f"/assets/{name}": file for name, file in files.items()}

    async def serve(self, exchange: Exchange) -> bool:
        """Answers what is a page or the health check; False leaves the request to the API."""
        path = exchange.path
        if path.startswith("/v1/") or exchange.method != "GET":
            return False
        if path == "/healthz":
            await exchange.answer(200, [(b"content-type", b"text/plain")], b"ok\n")
            return True
        is_index = path == "/" or (path.startswith("/p/") and path.count("/") == 2)
        file = self._index if is_index else self._assets.get(path)
        if file is None:
            return False
        if exchange.headers.get(b"if-none-match") == file.etag:
            await exchange.answer(304, [(b"etag", file.etag)])
        else:
            await exchange.answer(200, file.headers, file.content)
        return True


def _load(path: Path) -> _File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'.encode()
    headers = ((b"content-type", _TYPES[path.suffix]), (b"etag", etag), *_GUARDS)
    return _File(content, etag, headers)
