"""Stored files in texts: signed URLs out, `reprise-file:<id>` in.

Texts are changed by pattern, never parsed and printed again: numbers and key order stay untouched.
"""

import hashlib
import hmac
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

from services.chassis.errors import FieldViolation, InvalidInput, PermissionDenied

MARKER = "reprise-file:"
# A steady expiry keeps a file's URL the same from poll to poll.
_EXPIRY_STEP_S = 3600
_QUERY_FIELD_COUNT_MAX = 20

_FILE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A JSON string token starts at a quote that no backslash precedes; one before a colon is a key.
_OUTGOING = re.compile(r'(?<!\\)"reprise-file:([A-Za-z0-9_-]{1,64})"(?!\s*:)')
_INCOMING = re.compile(
    r'(?<!\\)"https?:(?:\\?/){2}([^"\\/?#\s]{1,255})(?:\\?/v1){1,2}\\?/files\\?/'
    r'([A-Za-z0-9_-]{1,64})(?:\\?/download[^"?#\\]{0,255})?(?:\?([^"\\\s]{0,2048}))?"(?!\s*:)'
)
_DATA_URL = re.compile(
    r'(?<!\\)"data:([^"\\,]*+(?:\\/[^"\\,]*+)*+),([^"\\]*+(?:\\/[^"\\]*+)*+)"(?!\s*:)'
)


@dataclass(frozen=True, slots=True)
class DataUrl:
    """The content of a data URL."""

    content_type: str
    content: bytes


class LinkSigner:
    """Makes and checks download URLs: the signature is the permission."""

    def __init__(self, key: str, age_s: int, clock: Callable[[], float] = time.time) -> None:
        self._key = key.encode()
        self._age_s = age_s
        self._clock = clock

    def url(self, *, base_url: str, owner: str, file_id: str) -> str:
        """A URL under which the owner's file can be read without a token."""
        expiry = (int(self._clock()) + self._age_s) // _EXPIRY_STEP_S * _EXPIRY_STEP_S
        expiry += _EXPIRY_STEP_S
        signature = quote(self.sign(owner=owner, file_id=file_id, expiry=str(expiry)), safe="")
        return (
            f"{base_url}/v1/files/{file_id}/download"
            f"?expiry={expiry}&owner={quote(owner)}&signature={signature}"
        )

    def sign(self, *, owner: str, file_id: str, expiry: str) -> str:
        """Standard base64 of the HMAC-SHA256 of owner, id and expiry."""
        digest = hmac.digest(self._key, f"{owner} {file_id} {expiry}".encode(), hashlib.sha256)
        return b64encode(digest).decode()

    def owner_of(self, *, file_id: str, query: str) -> str | None:
        """The owner that a query's signature speaks for; None where it has no signature."""
        values = _query_values(query) or {}
        signature = values.get("signature", "")
        if not signature:
            return None
        owner, expiry = values.get("owner", ""), values.get("expiry", "")
        expected = self.sign(owner=owner, file_id=file_id, expiry=expiry)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise PermissionDenied("The signature of this URL is wrong.", reason="BAD_SIGNATURE")
        if int(expiry) < self._clock():
            raise PermissionDenied(
                "This URL has expired; ask for the prediction or file again for a new one.",
                reason="URL_EXPIRED",
            )
        return owner


def _query_values(query: str) -> dict[str, str] | None:
    """The last value of each parameter; None where there are more than any URL of ours has."""
    try:
        values = parse_qs(query, max_num_fields=_QUERY_FIELD_COUNT_MAX)
    except ValueError:
        return None
    return {name: items[-1] for name, items in values.items()}


def is_file_id(text: str) -> bool:
    """Whether the text may be a file's id."""
    return _FILE_ID.fullmatch(text) is not None


def file_ids(text: str) -> list[str]:
    """The stored files that a JSON text names."""
    return _OUTGOING.findall(text)


def replace_files(text: str, urls: Mapping[str, str]) -> str:
    """The JSON text with each stored file as a URL."""
    return _OUTGOING.sub(lambda match: f'"{urls[match[1]]}"', text)


def take_in_file_urls(text: str, *, hosts: frozenset[str], account_id: str) -> str:
    """The JSON text with URLs of the caller's own files as `reprise-file:<id>`."""
    if "files" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        host, file_id, query = match.groups()
        values = _query_values(query or "")
        if host.lower() not in hosts or values is None:
            return match[0]
        if values.get("owner", account_id) != account_id:
            return match[0]
        return f'"{MARKER}{file_id}"'

    return _INCOMING.sub(replace, text)


def find_data_urls(text: str, *, longer_than: int) -> list[re.Match[str]]:
    """The long data URLs of a JSON text."""
    if len(text) <= longer_than or '"data:' not in text:
        return []
    return [match for match in _DATA_URL.finditer(text) if len(match[0]) > longer_than]


def decode_data_url(match: re.Match[str], field: str) -> DataUrl:
    """The content of a data URL; InvalidInput where it is not well formed."""
    header, payload = match[1].replace("\\/", "/"), match[2].replace("\\/", "/")
    content_type, *parameters = header.split(";")
    try:
        is_base64 = "base64" in [parameter.strip().lower() for parameter in parameters]
        # Some writers percent-encode the padding.
        content = (
            b64decode(payload.replace("%3D", "=").replace("%2B", "+"), validate=True)
            if is_base64
            else unquote_to_bytes(payload)
        )
    except ValueError:
        violation = FieldViolation(
            field=field, description="holds a data URL whose base64 is broken", kind="invalid"
        )
        raise InvalidInput("broken data URL", fields=[violation]) from None
    return DataUrl(content_type or "text/plain", content)


def host_of(url: str) -> str:
    """Host and port of a URL."""
    return urlsplit(url).netloc.lower()
