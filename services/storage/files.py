"""The rules of files: header, size, id and expiry."""

import re
import secrets
import unicodedata

import orjson
from reprise.storage.v1 import file_pb2
from reprise.wire.v1.json_pb2 import Json

from services.chassis.errors import NotFound, invalid_field

NAME_SIZE_BYTES_MAX = 255
CONTENT_TYPE_SIZE_MAX = 255
METADATA_SIZE_BYTES_MAX = 16 * 1024
CONTENT_TYPE_DEFAULT = "application/octet-stream"
NAME_DEFAULT = "file"

_FILE_ID = re.compile(r"[A-Za-z0-9_-]{26,64}")
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[\x20-\x7e\t]*)?")


def new_file_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_urlsafe(24)


def check_file_id(file_id: str) -> str:
    """The id; one that we never made is not found rather than wrong."""
    if not _FILE_ID.fullmatch(file_id):
        raise not_found()
    return file_id


def not_found() -> NotFound:
    """The one answer for files that are absent, expired or another account's."""
    return NotFound("File not found")


def check_header(header: file_pb2.FileHeader) -> file_pb2.FileHeader:
    """The header with its defaults filled in."""
    return file_pb2.FileHeader(
        name=_check_name(header.name or NAME_DEFAULT),
        content_type=_check_content_type(header.content_type or CONTENT_TYPE_DEFAULT),
        metadata=Json(text=_check_metadata(header.metadata.text or "{}")),
    )


def _check_name(name: str) -> str:
    if len(name.encode()) > NAME_SIZE_BYTES_MAX:
        raise invalid_field("filename", f"must be at most {NAME_SIZE_BYTES_MAX} bytes of UTF-8")
    has_control = any(unicodedata.category(character) == "Cc" for character in name)
    if has_control or "/" in name or "\\" in name or name in (".", ".."):
        raise invalid_field(
            "filename", "must be a bare file name, without folders or control characters"
        )
    return name


def _check_content_type(content_type: str) -> str:
    if len(content_type) > CONTENT_TYPE_SIZE_MAX or not _CONTENT_TYPE.fullmatch(content_type):
        raise invalid_field("type", "must be a content type such as image/png")
    return content_type


def _check_metadata(text: str) -> str:
    if len(text.encode()) > METADATA_SIZE_BYTES_MAX:
        raise invalid_field("metadata", f"must be at most {METADATA_SIZE_BYTES_MAX} bytes of JSON")
    try:
        is_object = isinstance(orjson.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise invalid_field("metadata", "must be a JSON object")
    return text
