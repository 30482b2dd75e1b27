"""What one attempt of a prediction has to tell, in order; neighbours of one kind are merged."""

from collections.abc import Callable

from reprise.inference.v1 import events_pb2
from reprise.wire.v1 import json_pb2

_MERGED_LOG_MAX = 64 * 1024
_MERGED_OUTPUT_MAX = 256 * 1024
_STEP_OVERHEAD = 64


class RunJournal:
    """Steps wait here until the reporter takes them, and are numbered when they are taken."""

    __slots__ = (
        "_attempt",
        "_pending",
        "_prediction_id",
        "_sequence",
        "_sizes",
        "is_closed",
        "on_reported",
    )

    def __init__(self, prediction_id: str, attempt: int, on_reported: Callable[[], None]) -> None:
        """`on_reported` is called once the completed step was acknowledged."""
        self._prediction_id = prediction_id
        self._attempt = attempt
        self._pending: list[events_pb2.RunEvent] = []
        self._sizes: list[int] = []
        self._sequence = 0
        self.is_closed = False
        self.on_reported = on_reported

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def started(self) -> int:
        return self._append(events_pb2.RunEvent(started=events_pb2.RunStarted()), 0)

    def logged(self, text: str) -> int:
        """Each of these returns by how many bytes the backlog grew."""
        size = len(text.encode(errors="replace")) if not text.isascii() else len(text)
        last = self._mergeable("logged", size, _MERGED_LOG_MAX)
        if last is None:
            logged = events_pb2.RunLogged(text=text)
            return self._append(events_pb2.RunEvent(logged=logged), size)
        last.logged.text += text
        self._sizes[-1] += size
        return size

    def output(self, item: str) -> int:
        last = self._mergeable("output", len(item), _MERGED_OUTPUT_MAX)
        if last is None:
            items = [json_pb2.Json(text=item)]
            return self._append(
                events_pb2.RunEvent(output=events_pb2.RunOutput(items=items)), len(item)
            )
        last.output.items.add(text=item)
        self._sizes[-1] += len(item) + _STEP_OVERHEAD
        return len(item) + _STEP_OVERHEAD

    def completed(self, completed: events_pb2.RunCompleted) -> int:
        self.is_closed = True
        return self._append(events_pb2.RunEvent(completed=completed), completed.ByteSize())

    def take(self, room_bytes: int, into: list[events_pb2.RunEvent]) -> int:
        """Moves the steps that fit, at least one into an empty list; returns their size."""
        count = size = 0
        for step_size in self._sizes:
            if (into or count) and size + step_size > room_bytes:
                break
            size += step_size
            count += 1
        for event in self._pending[:count]:
            self._sequence += 1
            event.prediction_id = self._prediction_id
            event.attempt = self._attempt
            event.sequence = self._sequence
            into.append(event)
        del self._pending[:count], self._sizes[:count]
        return size

    def discard(self) -> int:
        """Drops what nobody wants to hear any more; returns its size."""
        size = sum(self._sizes)
        self._pending.clear()
        self._sizes.clear()
        return size

    def _append(self, event: events_pb2.RunEvent, size: int) -> int:
        self._pending.append(event)
        self._sizes.append(size + _STEP_OVERHEAD)
        return size + _STEP_OVERHEAD

    def _mergeable(self, kind: str, size: int, limit: int) -> events_pb2.RunEvent | None:
        if not self._pending or self._sizes[-1] + size > limit:
            return None
        last = self._pending[-1]
        return last if last.WhichOneof("step") == kind else None
