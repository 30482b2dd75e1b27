"""Pages of a list in both directions, by the position of their first and last row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, tuple_

from services.chassis.paging import decode_cursor, encode_cursor
from services.storage.registry import invalid

PAGE_SIZE_MAX = 100


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in the list's order, and cursors to what is before and after; empty where none."""

    rows: Sequence[Row[Any]]
    next_page_token: str
    previous_page_token: str


@dataclass(frozen=True, slots=True)
class Order:
    """Columns that place each row of a list uniquely, and what the cursors must repeat."""

    columns: tuple[ColumnElement[Any], ...]
    is_descending: bool = True
    # Names the list, so that a cursor of another one is refused.
    label: str = ""


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
        place, here = _position(cursor, order), tuple_(*order.columns)
        statement = statement.where(here < place if is_descending else here > place)
    statement = statement.order_by(
        *(column.desc() if is_descending else column.asc() for column in order.columns)
    )
    rows = list(connection.execute(statement.limit(page_size + 1)))
    has_more = len(rows) > page_size
    rows = rows[:page_size]
    if is_backward:
        rows.reverse()
    has_next = bool(rows) and (has_more or is_backward)
    has_previous = bool(rows) and bool(page_token) and (has_more or not is_backward)
    return Page(
        rows=rows,
        next_page_token=_token(rows[-1], order, back=0) if has_next else "",
        previous_page_token=_token(rows[0], order, back=1) if has_previous else "",
    )


def _position(cursor: dict[str, str | int], order: Order) -> tuple[str | int, ...]:
    place = tuple(cursor.get(f"k{index}", "") for index in range(len(order.columns)))
    expected = tuple(column.type.python_type for column in order.columns)
    if cursor.get("list") != order.label or tuple(type(key) for key in place) != expected:
        raise invalid("page_token", "belongs to another list; take it from the page before")
    return place


def _token(row: Row[Any], order: Order, *, back: int) -> str:
    position: dict[str, str | int] = {"list": order.label, "back": back}
    for index, column in enumerate(order.columns):
        position[f"k{index}"] = row._mapping[column]
    return encode_cursor(position)
