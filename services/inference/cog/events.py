"""What a prediction reports while it runs, in the order it happens; Completed is always the
last.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Started:
    pass


@dataclass(frozen=True, slots=True)
class Log:
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Output:
    """One yielded item of an iterator, or the whole value of any other model."""

    chunk: Any
    index: int


@dataclass(frozen=True, slots=True)
class Metric:
    """`mode` is replace, increment or append."""

    name: str
    value: Any
    mode: str


@dataclass(frozen=True, slots=True)
class Completed:
    """`output` is everything so far, also after a failure; `error` is set when the status is
    failed.
    """

    status: Status
    output: Any = None
    error: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


Event = Started | Log | Output | Metric | Completed
