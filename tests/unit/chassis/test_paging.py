"""Cursors of lists."""

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import InvalidInput
from services.chassis.paging import (
    Order,
    Page,
    bounded_page_size,
    decode_cursor,
    encode_cursor,
    read_page,
    slice_page,
)

ROWS = sa.table("items", sa.column("at", sa.BigInteger), sa.column("id", sa.Text))
ORDER = Order(columns=(ROWS.c.at, ROWS.c.id), label="items")
POSITION = st.dictionaries(
    st.text(max_size=5), st.text(max_size=20) | st.integers(0, 2**53), min_size=1, max_size=3
)


@given(POSITION)
def test_a_cursor_round_trips(position: dict[str, str | int]) -> None:
    assert decode_cursor(encode_cursor(position)) == position


@pytest.mark.parametrize("cursor", ["%%%", "abc", "W10", "A" * 2000, "é"])
def test_rubbish_is_refused_by_the_name_of_its_field(cursor: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_cursor(cursor)
    assert [violation.field for violation in caught.value.fields] == ["page_token"]


@pytest.mark.parametrize(("given_size", "used"), [(0, 25), (7, 7), (1000, 100)])
def test_a_page_size_is_bounded(given_size: int, used: int) -> None:
    assert bounded_page_size(given_size, default=25, maximum=100) == used


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="page_size"):
        bounded_page_size(-1, default=25, maximum=100)


def read(ids: list[str], page_token: str, *, size: int = 2, order: Order = ORDER) -> Page:
    """A page of the ids, of which always three are of one time."""
    engine = sa.create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE items (at INTEGER, id TEXT)"))
            rows = [{"at": index // 3, "id": id_} for index, id_ in enumerate(ids)]
            if rows:
                connection.execute(sa.insert(ROWS), rows)
            return read_page(
                connection, sa.select(ROWS), order=order, page_token=page_token, page_size=size
            )
    finally:
        engine.dispose()


def ids_of(page: Page) -> list[str]:
    return [row.id for row in page.rows]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 20), size=st.integers(1, 5))
def test_turning_forth_shows_each_row_once_and_back_the_same_pages(count: int, size: int) -> None:
    ids = [f"{index:02}" for index in range(count)]
    page = read(ids, "", size=size)
    turned = [ids_of(page)]
    assert page.previous_page_token == ""
    while page.next_page_token:
        page = read(ids, page.next_page_token, size=size)
        turned.append(ids_of(page))
    assert [item for rows in turned for item in rows] == ids[::-1]
    for expected in turned[-2::-1]:
        page = read(ids, page.previous_page_token, size=size)
        assert ids_of(page) == expected
    assert page.previous_page_token == ""


def test_new_rows_do_not_shift_the_next_page() -> None:
    token = read(["1", "2", "3", "4"], "").next_page_token
    assert ids_of(read(["1", "2", "3", "4", "5", "6"], token)) == ["2", "1"]


def test_filters_travel_in_the_cursors() -> None:
    order = Order(columns=ORDER.columns, label="items", kept={"source": "api"})
    token = read(["1", "2", "3"], "", order=order).next_page_token
    assert decode_cursor(token)["source"] == "api"


FOREIGN = [
    encode_cursor({"list": "others", "k0": 1, "k1": "1"}),
    encode_cursor({"list": "items", "k0": "1", "k1": "1"}),
    encode_cursor({"list": "items", "k0": True, "k1": "1"}),
    encode_cursor({"list": "items", "k0": 2**63, "k1": "1"}),
]


@pytest.mark.parametrize("page_token", FOREIGN)
def test_a_cursor_of_another_list_is_refused(page_token: str) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        read(["1"], page_token)


@pytest.mark.parametrize("page_token", FOREIGN)
def test_a_cursor_of_another_list_in_memory_is_refused(page_token: str) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        slice_page(
            [(1, "1")], key=lambda key: key, page_token=page_token, page_size=1, label="items"
        )


@given(keys=st.sets(st.tuples(st.integers(0, 3), st.text(max_size=2))), size=st.integers(1, 4))
def test_slices_show_each_item_once_in_order(keys: set[tuple[int, str]], size: int) -> None:
    seen: list[tuple[int, str]] = []
    token = ""
    while True:
        page = slice_page(
            keys, key=lambda key: key, page_token=token, page_size=size, label="items"
        )
        assert len(page.items) <= size
        seen += page.items
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(keys)
