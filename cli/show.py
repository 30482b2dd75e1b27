"""How the CLI shows things to people."""

import json
import sys
from datetime import UTC
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from reprise.scheduler.v1 import prediction_pb2
from rich.console import Console
from rich.table import Column, Table

MICROS = 1_000_000
out = Console()
err = Console(stderr=True)

_COLORS = {"succeeded": "green", "failed": "red", "canceled": "yellow", "processing": "cyan"}


def status_name(prediction: prediction_pb2.Prediction) -> str:
    """starting, processing, succeeded, failed or canceled."""
    name = prediction_pb2.PredictionStatus.Name(prediction.status)
    return name.removeprefix("PREDICTION_STATUS_").lower()


def colored_status(prediction: prediction_pb2.Prediction) -> str:
    name = status_name(prediction)
    return f"[{_COLORS.get(name, 'white')}]{name}[/]"


def money(micros: int, currency: str = "USD") -> str:
    """Micros as people read money; never rounded."""
    whole, rest = divmod(abs(micros), MICROS)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}{whole}.{decimals} {currency}"


def price(prediction: prediction_pb2.Prediction) -> str:
    """What a prediction cost, or may cost at most."""
    cost = prediction.cost
    if cost.status == prediction_pb2.COST_STATUS_CAPTURED:
        seconds = cost.charged_ms / 1000
        return f"{money(cost.captured_amount_micros)} for {seconds:.3f} s on {cost.hardware}"
    if cost.status == prediction_pb2.COST_STATUS_RELEASED:
        return "nothing"
    return f"at most {money(cost.held_amount_micros)}"


def waiting(prediction: prediction_pb2.Prediction) -> str:
    """The queue card in one line."""
    if not prediction.HasField("queue"):
        return status_name(prediction)
    return f"waiting, position {prediction.queue.position}: {prediction.queue.detail}"


def as_json(message: Message) -> None:
    """A message as one line of JSON; free-form JSON as what it is."""
    print_json(_unwrapped(MessageToDict(message, preserving_proto_field_name=True)))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"text"}:
            return json.loads(value["text"])
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    return value


def amount(prediction: prediction_pb2.Prediction) -> str:
    """What a prediction cost, in as few letters as a table has room for."""
    cost = prediction.cost
    if cost.status == prediction_pb2.COST_STATUS_CAPTURED:
        return money(cost.captured_amount_micros)
    return "nothing" if cost.status == prediction_pb2.COST_STATUS_RELEASED else "held"


def predictions_table(predictions: list[prediction_pb2.Prediction]) -> Table:
    # An id or a price that was cut short is of no use.
    whole = [Column(name, no_wrap=True) for name in ("id", "status", "created", "price")]
    model = Column("model", overflow="fold")
    table = Table(whole[0], model, *whole[1:], box=None, header_style="bold")
    for item in predictions:
        created = item.created_at.ToDatetime(tzinfo=UTC).astimezone()
        table.add_row(
            item.id, item.model, colored_status(item), f"{created:%m-%d %H:%M}", amount(item)
        )
    return table
