"""Opaque cursors of list methods."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import orjson

from services.chassis.errors import FieldViolation, InvalidInput

CURSOR_SIZE_MAX = 1024


def encode_cursor(position: dict[str, str | int]) -> str:
    """The text that continues a list from this position."""
    return urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


def decode_cursor(cursor: str) -> dict[str, str | int]:
    """The position behind a cursor that encode_cursor made; {} for an empty one."""
    if not cursor:
        return {}
    try:
        if len(cursor) > CURSOR_SIZE_MAX:
            raise ValueError("too long")
        position = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(position, dict):
            raise ValueError("not an object")
    except ValueError:
        violation = FieldViolation(
            field="page_token",
            description="not a cursor of this list; take it from the page before",
            kind="invalid",
        )
        raise InvalidInput("page_token is not a cursor of this list", fields=[violation]) from None
    return position


def bounded_page_size(page_size: int, *, default: int, maximum: int) -> int:
    """The page size to use; 0 means the default."""
    if page_size < 0:
        violation = FieldViolation(
            field="page_size", description="must not be negative", kind="number_gte"
        )
        raise InvalidInput("page_size must not be negative", fields=[violation])
    return min(page_size or default, maximum)
