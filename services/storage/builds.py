"""Builds under way: pushes of the same content share one, and it ends with its last follower."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from grpc import ChannelConnectivity
from reprise.inference.v1 import build_pb2, build_pb2_grpc

from services.chassis.channels import Peer
from services.chassis.errors import Unavailable

log = logging.getLogger(__name__)

STEP_COUNT_MAX = 10_000
STEP_SIZE_MAX = 2000


@dataclass(frozen=True, slots=True)
class BuildKey:
    """Whose content is built; accounts never share a build."""

    account_id: str
    version_id: str


class _Build:
    """One build with what it has told so far."""

    def __init__(
        self, run: Callable[["_Build"], Coroutine[Any, Any, build_pb2.BuiltVersion]]
    ) -> None:
        self.steps: list[str] = []
        # Set, and replaced by a new one, each time that there is news.
        self.news = asyncio.Event()
        self.follower_count = 0
        self.task = asyncio.create_task(run(self))

    def tell(self, step: str) -> None:
        if len(self.steps) < STEP_COUNT_MAX:
            self.steps.append(step[:STEP_SIZE_MAX])
            self.announce()

    def announce(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Builds:
    """Calls inference's BuildService, a bounded number of times at once."""

    def __init__(self, inference: Peer, *, wait_s: float, timeout_s: float, count_max: int) -> None:
        self._inference = inference
        self._stub = build_pb2_grpc.BuildServiceStub(inference.channel)
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(count_max)
        self._running: dict[BuildKey, _Build] = {}

    async def follow(
        self, key: BuildKey, request: build_pb2.BuildVersionRequest
    ) -> AsyncGenerator[str | build_pb2.BuiltVersion, None]:
        """Steps from the first one on, then the result; raises what the build failed of."""
        build = self._running.get(key) or self._start(key, request)
        build.follower_count += 1
        try:
            sent_count = 0
            while True:
                news = build.news
                while sent_count < len(build.steps):
                    sent_count += 1
                    yield build.steps[sent_count - 1]
                if build.task.done():
                    break
                await news.wait()
            yield build.task.result()
        finally:
            build.follower_count -= 1
            if build.follower_count == 0:
                del self._running[key]
                build.task.cancel()

    def _start(self, key: BuildKey, request: build_pb2.BuildVersionRequest) -> _Build:
        async def run(build: _Build) -> build_pb2.BuiltVersion:
            if self._slots.locked():
                build.tell("Waiting for another build to end")
            async with self._slots:
                return await self._run(key, request, build)

        build = self._running[key] = _Build(run)

        def ended(task: asyncio.Task[build_pb2.BuiltVersion]) -> None:
            build.announce()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info(
                    "build failed",
                    extra={
                        "event": "build_failed",
                        "version_id": key.version_id,
                        "why": str(error),
                    },
                )

        build.task.add_done_callback(ended)
        return build

    async def _run(
        self, key: BuildKey, request: build_pb2.BuildVersionRequest, build: _Build
    ) -> build_pb2.BuiltVersion:
        if self._inference.channel.get_state(try_to_connect=True) != ChannelConnectivity.READY:
            # Told before it can fail: calls that have answered something are not repeated.
            build.tell("Looking for an inference service")
            await self._must_be_there()
        built: build_pb2.BuiltVersion | None = None
        answers = self._inference.stream(
            self._stub.BuildVersion, request, timeout_s=self._timeout_s, account_id=key.account_id
        )
        async for answer in answers:
            if answer.WhichOneof("result") == "built":
                built = answer.built
            else:
                build.tell(answer.step)
        if built is None:
            raise Unavailable("the build ended without a result; push again")
        for warning in built.warnings:
            build.tell(f"Warning: {warning}")
        return built

    async def _must_be_there(self) -> None:
        """A call would wait for its peer as long as a build may take, and its caller with it."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._inference.channel.channel_ready()
        except TimeoutError:
            raise Unavailable(
                "no inference service answers, so nothing can be built; start one and push again"
            ) from None
