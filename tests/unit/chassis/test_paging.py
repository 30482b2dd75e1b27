"""Cursors of lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidInput
from services.chassis.paging import bounded_page_size, decode_cursor, encode_cursor

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
