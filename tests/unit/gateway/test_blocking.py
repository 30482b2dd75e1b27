"""`Prefer: wait` and `Cancel-After`."""

import pytest

from services.chassis.errors import InvalidInput
from services.gateway.blocking import clamp_wait, parse_cancel_after, parse_prefer, wait_of


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("wait", 60),
        ("wait=5", 5),
        ("WAIT=5", 5),
        (' wait = "7" ', 7),
        ("respond-async, wait=9", 9),
        ("wait=9; x=1", 9),
        ("wait=90", 90),
        ("wait=0", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=²", None),
        ("waiting=5", None),
        ("respond-async", None),
        ("", None),
    ],
)
def test_the_grammar_of_prefer(prefer: str, wait_s: float | None) -> None:
    assert parse_prefer(prefer) == wait_s


@pytest.mark.parametrize(
    ("wait_s", "header", "clamped_s"),
    [
        (60, None, 55),
        (5, None, 5),
        (60, b"60", 55),
        (60, b"30", 25),
        (60, b"4", 2),
        (60, b"600", 55),
        (60, b"soon", 55),
        (60, b"nan", 55),
        (60, b"0", 55),
    ],
)
def test_a_wait_ends_before_its_client_gives_up(
    wait_s: float, header: bytes | None, clamped_s: float
) -> None:
    for name in (b"x-stainless-read-timeout", b"x-stainless-timeout"):
        headers = {} if header is None else {name: header}
        assert clamp_wait(wait_s, headers) == clamped_s


def test_no_preference_is_no_wait() -> None:
    assert wait_of({}) is None
    assert wait_of({b"prefer": b"wait=3"}) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("1h30m45s", 5445), ("24h", 86400)],
)
def test_the_grammar_of_cancel_after(text: str, seconds: int) -> None:
    assert parse_cancel_after(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "4s", "25h", "1.5h", "-5", "5s1m", "99999999999h", "٣٠"]
)
def test_other_deadlines_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_cancel_after(text)
    assert caught.value.fields[0].field == "Cancel-After"
