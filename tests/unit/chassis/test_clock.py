"""Times between the database and the wire."""

from hypothesis import given
from hypothesis import strategies as st

from services.chassis.clock import timestamp


@given(st.integers(-(10**15), 10**16))
def test_a_timestamp_keeps_every_microsecond(time_us: int) -> None:
    assert timestamp(time_us).ToMicroseconds() == time_us
