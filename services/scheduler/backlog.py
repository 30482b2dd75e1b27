"""Order and bounds of what waits: first in, first out per version, versions in turn."""

from collections import OrderedDict
from collections.abc import Iterator

from services.chassis.errors import ResourceExhausted


class Backlog:
    """Ids of waiting predictions by version; each id at most once."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._size = 0
        # Version ids in turn; ids of each in the order in which they run, with their tickets.
        self._versions: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    def check_room(self, count: int = 1) -> None:
        """Refuses what would pass the bound."""
        if self._size + count > self._size_max:
            raise ResourceExhausted(
                f"{self._size} predictions wait, which is the most that may; try again later",
                reason="BACKLOG_FULL",
            )

    def append(self, version_id: str, prediction_id: str) -> None:
        """Puts a prediction behind the others of its version."""
        waiting = self._versions.setdefault(version_id, OrderedDict())
        if prediction_id not in waiting:
            waiting[prediction_id] = waiting[next(reversed(waiting))] + 1 if waiting else 0
            self._size += 1

    def restore(self, version_id: str, prediction_id: str) -> None:
        """Puts a prediction back before the others: it had its turn and lost it."""
        self.append(version_id, prediction_id)
        waiting = self._versions[version_id]
        waiting[prediction_id] = waiting[next(iter(waiting))] - 1
        waiting.move_to_end(prediction_id, last=False)

    def remove(self, version_id: str, prediction_id: str) -> bool:
        """Takes a prediction out; False when it did not wait."""
        waiting = self._versions.get(version_id)
        if waiting is None or prediction_id not in waiting:
            return False
        del waiting[prediction_id]
        self._size -= 1
        if not waiting:
            del self._versions[version_id]
        return True

    def first(self, version_id: str) -> str | None:
        """Who is next of a version."""
        waiting = self._versions.get(version_id)
        return next(iter(waiting)) if waiting else None

    def waiting(self, version_id: str) -> list[str]:
        """All that wait for a version, in order."""
        return list(self._versions.get(version_id, ()))

    def position(self, version_id: str, prediction_id: str) -> int:
        """1 is next, 0 does not wait; canceled ones ahead may still count, so it never grows."""
        waiting = self._versions.get(version_id)
        if waiting is None or prediction_id not in waiting:
            return 0
        ahead = waiting[prediction_id] - waiting[next(iter(waiting))]
        return min(ahead + 1, len(waiting))

    def versions_in_turn(self) -> Iterator[str]:
        """Versions with waiting predictions; the next round starts with the next version."""
        versions = list(self._versions)
        if versions:
            self._versions.move_to_end(versions[0])
        return iter(versions)
