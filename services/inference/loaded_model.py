"""What both kinds of loaded versions, cog and engine, can do for a prediction."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from services.inference.cog.events import Event


class LoadedModel(Protocol):
    """Runs predictions until `crash` says why it cannot any more."""

    # Predictions at a time.
    concurrency: int

    @property
    def crash(self) -> str | None: ...

    def predict(
        self, prediction_id: str, prediction_input: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """Ends with Completed; its logs are bounded.

        Raises InputRejected, RunnerBusy, RunnerCrashed, or a RepriseError for a platform fault.
        """
        ...

    async def cancel(self, prediction_id: str) -> bool:
        """False when no such prediction is running."""
        ...

    async def stop(self, *, grace_s: float | None = None) -> None: ...


class LoadFailed(Exception):
    """A version could not be loaded; the text is for people."""

    def __init__(self, reason: str, *, is_models_fault: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_models_fault = is_models_fault
