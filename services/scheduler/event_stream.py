"""Tokens, ids and data of the server-sent events of one prediction. Pure."""

import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence

from reprise.scheduler.v1 import prediction_pb2

from services.chassis.errors import NotFound, invalid_field
from services.scheduler.lifecycle import CANCELED, FAILED, Status

_SIGNATURE_LENGTH = 32


def stream_token(prediction_id: str, key: bytes) -> str:
    """The unguessable part of a stream's URL; it names the prediction, so no index is needed."""
    signature = hmac.digest(key, b"stream|" + prediction_id.encode(), hashlib.sha256).hex()
    return prediction_id + signature[:_SIGNATURE_LENGTH]


def prediction_of_token(token: str, key: bytes) -> str:
    """The prediction that a token was made for; raises NotFound for any other text."""
    prediction_id = token[:-_SIGNATURE_LENGTH]
    if not hmac.compare_digest(token.encode(), stream_token(prediction_id, key).encode()):
        raise NotFound("there is no such stream")
    return prediction_id


def next_index(last_event_id: str) -> int:
    """Where to go on after an event; 0 without one."""
    if not last_event_id:
        return 0
    _, _, index = last_event_id.rpartition(":")
    if not (index.isascii() and index.isdigit() and len(index) < 12):
        raise invalid_field("last_event_id", "must be the id of an event of this stream")
    return int(index) + 1


def output_events(
    items: Sequence[str], *, start: int, created_at: int
) -> Iterator[prediction_pb2.StreamPredictionResponse]:
    """Events of the items from an index on; items are JSON texts."""
    for index in range(start, len(items)):
        yield _event(index, "output", item_data(items[index]), created_at)


def end_events(
    *, status: Status, error: str | None, item_count: int, start: int, created_at: int
) -> Iterator[prediction_pb2.StreamPredictionResponse]:
    """What follows the last item: an error where there was one, then done."""
    index = item_count
    if status == FAILED:
        if index >= start:
            yield _event(index, "error", json.dumps({"detail": error or ""}), created_at)
        index += 1
    if index >= start:
        reason = {FAILED: '{"reason":"error"}', CANCELED: '{"reason":"canceled"}'}
        yield _event(index, "done", reason.get(status, "{}"), created_at)


def item_data(item: str) -> str:
    """One item as event data: a string as it is, anything else as JSON."""
    if not item.startswith('"'):
        return item
    text: str = json.loads(item)
    return text


def split_items(output: str | None) -> list[str]:
    """The JSON texts of the items of a finished iterator's output."""
    if not output:
        return []
    values = json.loads(output)
    if not isinstance(values, list):
        return [output]
    return [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]


def _event(
    index: int, event: str, data: str, created_at: int
) -> prediction_pb2.StreamPredictionResponse:
    event_id = f"{created_at // 1_000_000}:{index}"
    return prediction_pb2.StreamPredictionResponse(id=event_id, event=event, data=data)
