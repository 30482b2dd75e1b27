"""Drives predictions through one cog server and knows when that server can run nothing any more.

`start()` returns once the model is ready or raises SetupFailed; `predict()` yields the events of
one prediction; after RunnerCrashed the owner has to stop() this runner and start another one.

Files go in as data: URIs, up to the server's body limit: the server fetches http(s)
itself, and hands a local path to the model as a plain str, which no model expects.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from services.inference.cog.connection import AnswerTooLarge, Connection, ServerEvent
from services.inference.cog.errors import InputRejected, RunnerBusy, RunnerCrashed, SetupFailed
from services.inference.cog.events import Completed, Event, Log, Metric, Output, Started, Status
from services.inference.cog.leftovers import Leftovers
from services.inference.cog.sandbox import Sandbox
from services.inference.cog.server_process import RunnerLimits, RunnerSpec, ServerProcess
from services.inference.cog.stderr_lines import BoundedLog

REQUEST_LIMIT_BYTES = 100 * 1024 * 1024
_PREDICTION_ID = re.compile(r"[a-z0-9]{1,64}")
_ERROR_PREFIX = re.compile(
    r"(?:(?:Async )?Prediction failed: |Generator iteration error: |Training failed: )+"
)
_DEAD_WORKER = ("Worker crashed", "Failed to send request", "healthcheck channel closed")
_LOST = "the model's process ended while it ran the prediction (crash, exit or out of memory)"


class CogRunner:
    """At most `concurrency` predictions at once; a further one is refused with RunnerBusy."""

    def __init__(
        self, spec: RunnerSpec, sandbox: Sandbox, limits: RunnerLimits | None = None
    ) -> None:
        self.concurrency = spec.concurrency
        self._limits = limits or RunnerLimits()
        self._server = ServerProcess(spec, sandbox, self._limits)
        self._url_fields = _url_fields(spec.schema)
        self._idle_connections: list[Connection] = []
        self._leftovers: Leftovers | None = None
        self._crash: str | None = None

    @property
    def setup_logs(self) -> str:
        """What the model printed before it was ready, bounded."""
        return self._server.setup_logs

    @property
    def pid(self) -> int | None:
        """The root of the process tree, which is also its process group."""
        return self._server.pid

    @property
    def crash(self) -> str | None:
        """Why this runner can run nothing any more, or None while it can."""
        if self._crash is None and self._server.exit_status is not None:
            self._crash = f"the cog server ended with exit status {self._server.exit_status}"
        return self._crash

    async def start(self) -> None:
        """Raises SetupFailed; then nothing is left running."""
        await self._server.start()
        try:
            self._leftovers = Leftovers(self._server.open_exchange())
        except OSError as error:
            await self._server.stop(grace_s=0)
            reason = f"the model's process ended right after setup() ({error})"
            raise SetupFailed(reason, self.setup_logs) from error

    async def predict(
        self, prediction_id: str, prediction_input: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """Ends with Completed; closing it early cancels the prediction in the model.

        Raises InputRejected or RunnerBusy, when nothing was run, or RunnerCrashed.
        """
        body = self._request_body(prediction_id, prediction_input)
        if self.crash is not None:
            raise RunnerCrashed(self.crash)
        connection: Connection | None = None
        try:
            connection = await self._send(body)
            completed: Completed | None = None
            logs = BoundedLog(self._limits.max_log_bytes)
            while batch := await connection.read_events():
                for event in map(_event, batch):
                    if isinstance(event, Completed):
                        completed = event
                    elif isinstance(event, Log):
                        if text := logs.add(event.text):
                            yield Log(text, event.source)
                    elif event is not None:
                        yield event
            self._give_back(connection)
            connection = None
            self._raise_if_dead(completed)
            yield completed or Completed(Status.FAILED, error="The server ended the prediction.")
        except AnswerTooLarge as error:
            yield Completed(Status.FAILED, error=f"The output is too large: {error}.")
        except ConnectionError as error:
            self._crash = self.crash or f"the cog server closed the connection ({error!r})"
            raise RunnerCrashed(f"{_LOST}: {self._crash}") from error
        finally:
            if connection is not None:
                connection.close()
            # None when the runner was stopped meanwhile.
            if self._leftovers is not None:
                self._leftovers.add(prediction_id)

    async def cancel(self, prediction_id: str) -> bool:
        """False when no such prediction is running.

        A model that is busy in C code stops only when that call returns: the owner decides how
        long it waits for Completed before it stops this runner.
        """
        _check_id(prediction_id)
        connection: Connection | None = None
        try:
            connection = await self._connect()
            status = await connection.request("POST", f"/predictions/{prediction_id}/cancel")
            await connection.read_body()
            self._give_back(connection)
            connection = None
        except ConnectionError:
            return False
        finally:
            if connection is not None:
                connection.close()
        return status == 200

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Running predictions have `grace_s` to finish; then every process of the tree is
        killed.
        """
        for connection in self._idle_connections:
            connection.close()
        self._idle_connections.clear()
        grace_s = self._limits.stop_grace_s if grace_s is None else grace_s
        try:
            await self._server.stop(grace_s=grace_s)
        finally:
            self._crash = self._crash or "the runner was stopped"
            if self._leftovers is not None:
                leftovers, self._leftovers = self._leftovers, None
                await leftovers.close()

    def _request_body(self, prediction_id: str, prediction_input: Mapping[str, Any]) -> bytes:
        _check_id(prediction_id)
        problems = [
            f"{name}: a file must be given as a data: or http(s): URL"
            for name in self._url_fields & prediction_input.keys()
            if not _are_urls(prediction_input[name])
        ]
        if problems:
            raise InputRejected(sorted(problems))
        body = orjson.dumps({"id": prediction_id, "input": dict(prediction_input)})
        if len(body) > REQUEST_LIMIT_BYTES:
            raise InputRejected(
                [
                    f"the input has {len(body)} bytes, and {REQUEST_LIMIT_BYTES} are allowed;"
                    " send an http(s) URL instead"
                ]
            )
        return body

    async def _send(self, body: bytes) -> Connection:
        """The connection on which the event stream has begun."""
        deadline = asyncio.get_running_loop().time() + self._limits.busy_retry_s
        connection = await self._connect()
        try:
            while True:
                status = await connection.request(
                    "POST", "/predictions", body, accept="text/event-stream"
                )
                if status == 200:
                    return connection
                answer = await connection.read_body()
                if status != 409:
                    raise _refusal(status, answer)
                # A slot becomes free a moment after its last answer was sent.
                if asyncio.get_running_loop().time() > deadline:
                    await self._raise_busy()
                await asyncio.sleep(self._limits.busy_poll_s)
        except BaseException:
            connection.close()
            raise

    async def _raise_busy(self) -> None:
        # A dead worker answers 409 for ever, too.
        try:
            health = await self._server.health()
        except TimeoutError:
            health = {}
        reason = str(health.get("user_healthcheck_error", ""))
        if any(sign in reason for sign in _DEAD_WORKER):
            self._crash = "the model's process has ended"
            raise RunnerCrashed(self._crash)
        raise RunnerBusy(f"all {self.concurrency} slots are taken")

    def _raise_if_dead(self, completed: Completed | None) -> None:
        error = (completed.error if completed else None) or ""
        if error.startswith(_DEAD_WORKER):
            self._crash = "the model's process has ended"
            raise RunnerCrashed(_LOST)

    async def _connect(self) -> Connection:
        while self._idle_connections:
            connection = self._idle_connections.pop()
            if connection.is_usable:
                return connection
            connection.close()
        return await Connection.open(
            self._server.port, max_answer_bytes=self._limits.max_event_bytes
        )

    def _give_back(self, connection: Connection) -> None:
        if len(self._idle_connections) <= self.concurrency and connection.is_usable:
            self._idle_connections.append(connection)
        else:
            connection.close()


def _check_id(prediction_id: str) -> None:
    # The id becomes the name of a directory in the model's /tmp.
    if not _PREDICTION_ID.fullmatch(prediction_id):
        raise ValueError(f"prediction_id must match {_PREDICTION_ID.pattern}: {prediction_id!r}")


def _url_fields(schema: Mapping[str, Any]) -> frozenset[str]:
    properties = schema["components"]["schemas"]["Input"].get("properties", {})
    return frozenset(
        name
        for name, value in properties.items()
        if "uri" in (value.get("format"), value.get("items", {}).get("format"))
    )


def _are_urls(value: Any) -> bool:
    if isinstance(value, list):
        return all(_are_urls(item) for item in value)
    # Other types, null included, are the schema's business.
    return not isinstance(value, str) or value.startswith(("data:", "http://", "https://"))


def _refusal(status: int, answer: bytes) -> Exception:
    try:
        document = orjson.loads(answer)
    except orjson.JSONDecodeError:
        document = {}
    if status == 422:
        return InputRejected([_problem(entry) for entry in document.get("detail", [])])
    if status == 413:
        return InputRejected([f"the input is larger than {REQUEST_LIMIT_BYTES} bytes"])
    reason = str(document.get("error") or document.get("detail") or f"status {status}")
    return RunnerCrashed(f"the cog server refused the prediction: {reason}")


def _problem(entry: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in entry.get("loc", [])[2:])
    return f"{name}: {entry.get('msg', 'invalid')}" if name else str(entry.get("msg", "invalid"))


def _event(server_event: ServerEvent) -> Event | None:
    name = server_event.name
    if name not in ("start", "log", "output", "metric", "completed"):
        return None
    data = orjson.loads(server_event.data)
    if name == "start":
        return Started()
    if name == "log":
        return Log(data["data"], data["source"])
    if name == "output":
        return Output(data["chunk"], data["index"])
    if name == "metric":
        return Metric(data["name"], data["value"], data["mode"])
    error = data.get("error")
    return Completed(
        status=Status(data["status"]),
        output=data.get("output"),
        error=_ERROR_PREFIX.sub("", str(error), count=1) if error else None,
        metrics=data.get("metrics") or {},
    )
