"""Pages of the ledger, newest entry first: where a page starts, and where its neighbours do."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis import paging
from services.chassis.errors import FieldViolation, InvalidInput

SIZE_DEFAULT = 100
SIZE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """A page's size and the entry, by its sequence, that it starts beside; not both."""

    size: int
    # Older entries than this one.
    before: int | None = None
    # Newer entries than this one.
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Which of the rows that were read belong to the page, and its neighbours."""

    rows: slice
    next_page_token: str
    previous_page_token: str


def parse(page_token: str, *, page_size: int) -> Place:
    """The place that a request asks for."""
    size = paging.bounded_page_size(page_size, default=SIZE_DEFAULT, maximum=SIZE_MAX)
    match paging.decode_cursor(page_token):
        case {"before": int(before), **rest} if not rest and 0 <= before < 2**63:
            return Place(size, before=before)
        case {"after": int(after), **rest} if not rest and 0 <= after < 2**63:
            return Place(size, after=after)
        case {**rest} if not rest:
            return Place(size)
    raise _foreign_token()


def parse_age(page_token: str) -> tuple[int, str]:
    """Beyond which entry, in order of age, a list of open holds goes on."""
    match paging.decode_cursor(page_token):
        case {"created_at_us": int(created_at_us), "hold_id": str(hold_id)}:
            return (created_at_us, hold_id)
        case {**rest} if not rest:
            return (0, "")
    raise _foreign_token()


def age_token(age: tuple[int, str]) -> str:
    """The text that goes on beyond this entry."""
    created_at_us, hold_id = age
    return paging.encode_cursor({"created_at_us": created_at_us, "hold_id": hold_id})


def cut(sequences: Sequence[int], place: Place) -> Page:
    """Cuts the one row too many off the rows that were read for a place, newest first."""
    has_more = len(sequences) > place.size
    is_turned = place.after is not None
    start = 1 if has_more and is_turned else 0
    shown = sequences[start : start + place.size]
    has_newer = has_more if is_turned else place.before is not None
    has_older = is_turned or has_more
    return Page(
        rows=slice(start, start + place.size),
        next_page_token=_token("before", shown[-1]) if has_older and shown else "",
        previous_page_token=_token("after", shown[0]) if has_newer and shown else "",
    )


def _token(side: str, sequence: int) -> str:
    return paging.encode_cursor({side: sequence})


def _foreign_token() -> InvalidInput:
    problem = "is not a cursor of this list; take it from the page before"
    violation = FieldViolation(field="page_token", description=problem, kind="invalid")
    return InvalidInput(f"page_token {problem}", fields=[violation])
