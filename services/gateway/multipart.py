"""The upload form of POST /v1/files, read as it streams in.

Clients fill it in four ways; a part's meaning is its name, whatever its file name or type.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.chassis.errors import FieldViolation, InvalidInput, file_too_large
from services.gateway import problem

FIELDS_SIZE_MAX = 1 * 2**20
PART_COUNT_MAX = 128
PART_HEADER_SIZE_MAX = 8 * 2**10
# Smaller files stay in memory until they are passed on.
SPOOL_SIZE_MAX = 1 * 2**20
METADATA_DEPTH_MAX = 8

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


@dataclass(slots=True)
class UploadedForm:
    """A form that was read to its end; its owner closes the content."""

    content: BinaryIO
    size_bytes: int
    name: str
    content_type: str
    # JSON object.
    metadata: str


@dataclass(slots=True)
class _Part:
    name: str = ""
    file_name: str = ""
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)


class FormReader:
    """Parses one form; file bytes go to a spool, everything else is small and bounded."""

    def __init__(self, content_type: str, file_size_max: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _invalid("content", "send a multipart/form-data form with a part named content")
        self._file_size_max = file_size_max
        self._spool = tempfile.SpooledTemporaryFile(SPOOL_SIZE_MAX)  # noqa: SIM115 - outlives us
        self._size_bytes = 0
        self._fields: dict[str, str] = {}
        self._fields_size = 0
        self._file: _Part | None = None
        self._part = _Part()
        self._part_count = 0
        self._is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._pending: list[bytes] = []
        try:
            self._parser = MultipartParser(boundary, cast(Any, self._callbacks()))
        except FormParserError as error:
            self._spool.close()
            raise _malformed(error) from None

    async def read(self, chunks: AsyncIterator[bytes]) -> UploadedForm:
        """Reads the form to its end."""
        try:
            async for chunk in chunks:
                self._parser.write(chunk)
                await self._flush()
            self._parser.finalize()
            return self._form()
        except FormParserError as error:
            self._spool.close()
            raise _malformed(error) from None
        except BaseException:
            self._spool.close()
            raise

    def _callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(
                self._header_name, data[start:end]
            ),
            "on_header_value": lambda data, start, end: self._add_header(
                self._header_value, data[start:end]
            ),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._take(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._part = _Part()
        self._part_count += 1
        if self._part_count > PART_COUNT_MAX:
            raise problem.too_large(f"The form has more than {PART_COUNT_MAX} parts.")

    def _add_header(self, target: bytearray, data: bytes) -> None:
        target += data
        if len(target) > PART_HEADER_SIZE_MAX:
            raise problem.too_large("A part of the form has too long headers.")

    def _end_header(self) -> None:
        name = self._header_name.decode("latin-1").lower()
        self._part.headers[name] = self._header_value.decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        part = self._part
        disposition = part.headers.get("content-disposition", "")
        _, options = parse_options_header(disposition.encode())
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        part.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        part.content_type = part.headers.get("content-type", "")
        if part.name == "content":
            if self._file is not None:
                raise _invalid("content", "must be given once")
            self._file = part

    def _take(self, data: bytes) -> None:
        if self._part is self._file:
            self._size_bytes += len(data)
            if self._size_bytes > self._file_size_max:
                raise file_too_large(self._file_size_max)
            self._pending.append(data)
            return
        self._fields_size += len(data)
        if self._fields_size > FIELDS_SIZE_MAX:
            raise problem.too_large(f"The form's fields exceed {FIELDS_SIZE_MAX} bytes together.")
        self._part.content += data

    def _end_part(self) -> None:
        if self._part is not self._file:
            self._fields[self._part.name] = self._part.content.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_complete = True

    async def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        if self._size_bytes <= SPOOL_SIZE_MAX:
            self._spool.write(data)
        else:
            await asyncio.to_thread(self._spool.write, data)

    def _form(self) -> UploadedForm:
        if not self._is_complete:
            raise FormParserError("it ends before its last boundary")
        if self._file is None:
            raise _invalid(
                "content", "content is required: the part with the file's bytes", "required"
            )
        self._spool.seek(0)
        name = self._fields.get("filename") or self._file.file_name or "file"
        name = re.split(r"[/\\]", name)[-1] or "file"
        if len(name.encode("utf-8", "replace")) > 255:
            raise _invalid("filename", "must be at most 255 bytes of UTF-8")
        kind = self._fields.get("type") or self._file.content_type or "application/octet-stream"
        return UploadedForm(
            content=cast(BinaryIO, self._spool),
            size_bytes=self._size_bytes,
            name=name,
            content_type=kind,
            metadata=_metadata(self._fields),
        )


def _metadata(fields: dict[str, str]) -> str:
    """The metadata object: one JSON part, or bracket fields such as metadata[a][b]."""
    metadata: Any = {}
    if text := fields.get("metadata", "").strip():
        try:
            metadata = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise _invalid("metadata", "must be a JSON object") from None
    if not isinstance(metadata, dict):
        raise _invalid("metadata", "must be a JSON object")
    for name, value in fields.items():
        keys = _BRACKETS.findall(name) if name.startswith("metadata[") else []
        if not keys or f"metadata[{']['.join(keys)}]" != name:
            continue
        if len(keys) > METADATA_DEPTH_MAX:
            raise _invalid("metadata", f"must not nest deeper than {METADATA_DEPTH_MAX}")
        target = metadata
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise _invalid("metadata", f"{key} is both a value and an object")
        target[keys[-1]] = value
    return orjson.dumps(metadata).decode()


def _malformed(error: FormParserError) -> InvalidInput:
    return InvalidInput(f"The form is malformed: {error}", reason="MALFORMED_BODY")


def _invalid(name: str, description: str, kind: str = "invalid") -> InvalidInput:
    violation = FieldViolation(field=name, description=description, kind=kind)
    return InvalidInput(description, fields=[violation])
