"""Ids, data and tokens of streams."""

import pytest

from services.chassis.errors import InvalidInput, NotFound
from services.scheduler import event_stream
from services.scheduler.lifecycle import CANCELED, FAILED, SUCCEEDED

KEY = b"key"
ID = "a" * 26


def test_a_token_names_its_prediction_and_cannot_be_made_up() -> None:
    token = event_stream.stream_token(ID, KEY)
    assert event_stream.prediction_of_token(token, KEY) == ID
    for wrong in ("", ID, token[:-1] + "x", token + "0", event_stream.stream_token(ID, b"other")):
        with pytest.raises(NotFound):
            event_stream.prediction_of_token(wrong, KEY)


@pytest.mark.parametrize(("last", "expected"), [("", 0), ("1700000000:4", 5), ("7:0", 1)])
def test_a_stream_goes_on_after_the_last_event(last: str, expected: int) -> None:
    assert event_stream.next_index(last) == expected


@pytest.mark.parametrize("last", ["x", "1:-1", "1:²", "1:", "1:" + "9" * 20])
def test_an_id_of_no_event_is_refused(last: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        event_stream.next_index(last)
    assert caught.value.fields[0].field == "last_event_id"


@pytest.mark.parametrize(
    ("status", "start", "expected"),
    [
        (SUCCEEDED, 0, [("5:2", "done", "{}")]),
        (CANCELED, 2, [("5:2", "done", '{"reason":"canceled"}')]),
        (FAILED, 0, [("5:2", "error", '{"detail": "no"}'), ("5:3", "done", '{"reason":"error"}')]),
        (FAILED, 3, [("5:3", "done", '{"reason":"error"}')]),
        (SUCCEEDED, 3, []),
    ],
)
def test_ends_come_after_the_items(
    status: int, start: int, expected: list[tuple[str, str, str]]
) -> None:
    events = event_stream.end_events(
        status=status, error="no", item_count=2, start=start, created_at=5_000_000
    )
    assert [(event.id, event.event, event.data) for event in events] == expected


def test_strings_are_sent_plain_and_the_rest_as_json() -> None:
    items = ['"a\\nb"', "1", '{"k":[1]}']
    events = event_stream.output_events(items, start=1, created_at=0)
    assert [event.data for event in events] == ["1", '{"k":[1]}']
    assert event_stream.item_data(items[0]) == "a\nb"


def test_items_of_a_stored_output_are_the_items_that_were_sent() -> None:
    items = ['"a"', "12345678901234567890", '{"k":1.5}']
    assert event_stream.split_items(f"[{','.join(items)}]") == items
    assert event_stream.split_items(None) == []
