"""Pages of a list that grows at its head while somebody turns them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing import pages
from services.billing.pages import Page, Place
from services.chassis.errors import InvalidInput
from services.chassis.paging import encode_cursor


def read(sequences: list[int], page_token: str, size: int) -> tuple[list[int], Page]:
    """What the store reads for a place, cut to the page."""
    place = pages.parse(page_token, page_size=size)
    newest_first = sorted(sequences, reverse=True)
    if place.after is not None:
        newer = [item for item in newest_first if item > place.after]
        rows = newer[-(size + 1) :]
    else:
        older = [item for item in newest_first if place.before is None or item < place.before]
        rows = older[: size + 1]
    page = pages.cut(rows, place)
    return rows[page.rows], page


@given(count=st.integers(0, 30), size=st.integers(1, 7))
def test_turning_forth_shows_each_entry_once_and_back_the_same_pages(count: int, size: int) -> None:
    sequences = list(range(1, count + 1))
    seen, page = read(sequences, "", size)
    turned = [seen]
    assert page.previous_page_token == ""
    while page.next_page_token:
        seen, page = read(sequences, page.next_page_token, size)
        turned.append(seen)
    assert [item for rows in turned for item in rows] == sequences[::-1]
    for expected in turned[-2::-1]:
        seen, page = read(sequences, page.previous_page_token, size)
        assert seen == expected
    assert page.previous_page_token == ""


def test_new_entries_do_not_shift_the_next_page() -> None:
    _, page = read([1, 2, 3, 4], "", 2)
    seen, _ = read([1, 2, 3, 4, 5, 6], page.next_page_token, 2)
    assert seen == [2, 1]


@pytest.mark.parametrize(
    "page_token",
    [
        "%%%",
        encode_cursor({"before": "1"}),
        encode_cursor({"before": 1, "after": 1}),
        encode_cursor({"before": -1}),
        encode_cursor({"hold_id": "p1", "created_at_us": 1}),
    ],
)
def test_a_foreign_page_token_is_refused_by_name(page_token: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        pages.parse(page_token, page_size=1)
    assert [violation.field for violation in refusal.value.fields] == ["page_token"]


def test_a_page_has_a_bounded_size() -> None:
    assert pages.parse("", page_size=0) == Place(pages.SIZE_DEFAULT)
    assert pages.parse("", page_size=10**6) == Place(pages.SIZE_MAX)


def test_an_age_token_goes_on_beyond_its_entry() -> None:
    assert pages.parse_age(pages.age_token((7, "p1"))) == (7, "p1")
    assert pages.parse_age("") < (1, "")
    with pytest.raises(InvalidInput):
        pages.parse_age(encode_cursor({"before": 1}))
