"""Wall-clock time as the services keep it: microseconds since 1970 in UTC."""

import time
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

SECOND_US = 1_000_000

# Given to whoever asks the time, so that tests can turn it.
Clock = Callable[[], int]


def now_us() -> int:
    """The time of this host."""
    return time.time_ns() // 1000


def timestamp(time_us: int) -> Timestamp:
    """The time as messages carry it."""
    seconds, rest_us = divmod(time_us, SECOND_US)
    return Timestamp(seconds=seconds, nanos=rest_us * 1000)
