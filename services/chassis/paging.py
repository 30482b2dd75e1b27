"""Pages of list methods: bounded, placed by the keys of their rows, continued by opaque cursors."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, Generic, TypeVar

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, tuple_

from services.chassis.errors import InvalidInput, invalid_field

CURSOR_SIZE_MAX = 1024
# What databases keep as an integer.
_INTEGER_MAX = 2**63 - 1

T = TypeVar("T")
Key = tuple[str | int, ...]
Cursor = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Order:
    """Columns that place each row of a list uniquely, and what the list's cursors repeat."""

    columns: tuple[ColumnElement[Any], ...]
    # Names the list, so that a cursor of another one is refused.
    label: str
    is_descending: bool = True
    # Filters that travel in the cursors: clients follow them without repeating these.
    kept: Cursor = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in the list's order, and cursors to what is before and after; empty where none."""

    rows: Sequence[Row[Any]]
    next_page_token: str
    previous_page_token: str


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """The items of one page of a list in memory, and the cursor to what is after them."""

    items: list[T]
    next_page_token: str


def encode_cursor(position: Cursor) -> str:
    """The text that continues a list from this position."""
    return urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


def decode_cursor(cursor: str) -> dict[str, Any]:
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
        raise foreign_cursor() from None
    return position


def foreign_cursor() -> InvalidInput:
    """The refusal of a page_token that this list did not give out."""
    return invalid_field("page_token", "is not a cursor of this list; take it from the page before")


def is_stored_integer(value: object) -> bool:
    """Whether a cursor's value may be compared with a column of integers."""
    return isinstance(value, int) and abs(value) <= _INTEGER_MAX


def bounded_page_size(page_size: int, *, default: int, maximum: int) -> int:
    """The page size to use; 0 means the default."""
    if page_size < 0:
        raise invalid_field("page_size", "must not be negative", "number_gte")
    return min(page_size or default, maximum)


def read_page(
    connection: Connection,
    statement: Select[Any],
    *,
    order: Order,
    page_token: str,
    page_size: int,
) -> Page:
    """The page of the statement's rows that the cursor points to; the first one without it."""
    cursor = decode_cursor(page_token)
    is_backward = bool(cursor.get("back"))
    # Going back from a newest-first list means oldest first.
    is_descending = order.is_descending != is_backward
    if page_token:
        kinds = tuple(column.type.python_type for column in order.columns)
        place, here = _position(cursor, order.label, kinds), tuple_(*order.columns)
        statement = statement.where(here < place if is_descending else here > place)
    statement = statement.order_by(
        *(column.desc() if is_descending else column.asc() for column in order.columns)
    )
    # One row more than is shown tells whether there is a further page.
    rows = list(connection.execute(statement.limit(page_size + 1)))
    has_more = len(rows) > page_size
    rows = rows[:page_size]
    if is_backward:
        rows.reverse()
    has_next = bool(rows) and (has_more or is_backward)
    has_previous = bool(rows) and bool(page_token) and (has_more or not is_backward)
    return Page(
        rows=rows,
        next_page_token=_row_token(rows[-1], order, back=0) if has_next else "",
        previous_page_token=_row_token(rows[0], order, back=1) if has_previous else "",
    )


def slice_page(
    items: Iterable[T], *, key: Callable[[T], Key], page_token: str, page_size: int, label: str
) -> Slice[T]:
    """The page of items in memory, in the order of their unique keys, that the cursor points to."""
    keyed = [(key(item), item) for item in items]
    cursor = decode_cursor(page_token)
    if cursor and keyed:
        place = _position(cursor, label, tuple(type(part) for part in keyed[0][0]))
        keyed = [pair for pair in keyed if pair[0] > place]
    first = nsmallest(page_size + 1, keyed, key=lambda pair: pair[0])
    shown = first[:page_size]
    has_next = len(first) > page_size
    return Slice(
        items=[item for _, item in shown],
        next_page_token=_token(shown[-1][0], label) if has_next else "",
    )


def _position(cursor: Cursor, label: str, kinds: tuple[type, ...]) -> Key:
    place = tuple(cursor.get(f"k{index}", "") for index in range(len(kinds)))
    if cursor.get("list") != label or tuple(type(part) for part in place) != kinds:
        raise foreign_cursor()
    if not all(isinstance(part, str) or is_stored_integer(part) for part in place):
        raise foreign_cursor()
    return place


def _token(key: Key, label: str, **more: str | int) -> str:
    return encode_cursor({"list": label, **more, **{f"k{i}": part for i, part in enumerate(key)}})


def _row_token(row: Row[Any], order: Order, *, back: int) -> str:
    key = tuple(row._mapping[column] for column in order.columns)
    return _token(key, order.label, back=back, **order.kept)
