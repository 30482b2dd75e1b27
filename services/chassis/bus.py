"""Events over NATS: publish, request, consume; the subject comes from the message's option."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import Error as JetStreamError
from reprise.wire.v1 import options_pb2

from services.chassis import telemetry
from services.chassis.errors import Unavailable
from services.chassis.settings import ServiceSettings

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Message)
Handler = Callable[[E], Awaitable[None]]

DEAD_LETTERS = "reprise.dead_letters"
DELIVERY_COUNT_MAX = 5
CONCURRENCY_MAX = 256
PUBLISH_TIMEOUT_S = 5.0
FETCH_WAIT_S = 5.0
# How soon an event comes again after its consumer was killed; handlers take milliseconds.
ACK_WAIT_S = 5
CONSUMER_RESTART_S = 0.5
STREAM_AGE_MAX_S = 7 * 24 * 3600
PENDING_SIZE_MAX = 64 * 1024 * 1024


def subject_of(event: Message | type[Message], to: str = "") -> str:
    """The NATS subject of an event, directed to one receiver where `to` is given."""
    subject = event.DESCRIPTOR.GetOptions().Extensions[options_pb2.subject]
    assert subject, f"{event.DESCRIPTOR.full_name} has no subject option"
    return f"{subject}.{to}" if to else subject


class Bus:
    """One process's connection to NATS; it reconnects for ever."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream: JetStreamContext = client.jetstream(timeout=PUBLISH_TIMEOUT_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(CONCURRENCY_MAX)
        self._streams: set[str] = set()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    async def connect(cls, settings: ServiceSettings, name: str) -> "Bus":
        """Connects, and waits for as long as the server is not there."""
        client = Client()
        bus = cls(client)
        await client.connect(
            servers=[settings.nats_url],
            name=name,
            token=settings.nats_token or None,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,  # type: ignore[arg-type]  # seconds; fractions work
            connect_timeout=2,
            ping_interval=10,
            pending_size=PENDING_SIZE_MAX,
            error_cb=_log_error,
            reconnected_cb=bus._reconnected,
        )
        return bus

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Calls back after each reconnect: messages may have been lost, the store deleted."""
        self._on_reconnect.append(callback)

    async def publish(self, event: Message, to: str = "") -> None:
        """Sends an event; a durable one is stored by JetStream before this returns."""
        subject = subject_of(event, to)
        if not event.DESCRIPTOR.GetOptions().Extensions[options_pb2.durable]:
            await self._client.publish(subject, event.SerializeToString())
            return
        event_id: str = event.event_id  # type: ignore[attr-defined]  # durable events have one
        headers = {"Nats-Msg-Id": event_id}
        if traceparent := telemetry.current_traceparent():
            headers["traceparent"] = traceparent
        try:
            await self._ensure_stream(subject)
            await self._jetstream.publish(subject, event.SerializeToString(), headers=headers)
        except (nats.errors.Error, JetStreamError, TimeoutError) as error:
            self._streams.discard(subject)
            raise Unavailable(f"the bus took no {subject}: {error!r}") from error

    async def request(self, event: Message, timeout_s: float) -> None:
        """Sends an event and waits until its receiver has handled it."""
        try:
            await self._client.request(
                subject_of(event), event.SerializeToString(), timeout=timeout_s
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(f"nobody acknowledged {subject_of(event)}: {error!r}") from error

    async def consume(
        self, event_type: type[E], handler: Handler[E], to: str = "", durable: str = ""
    ) -> None:
        """Calls the handler for each event; it must be idempotent.

        A durable consumer (named) gets each event until its handler returned; one that keeps
        failing is parked on the dead-letter subject.
        """
        subject = subject_of(event_type, to)
        if durable:
            self._spawn(self._consume_durable(event_type, handler, subject, durable))
            return

        async def receive(message: Msg) -> None:
            await self._slots.acquire()
            self._spawn(self._handle(event_type, handler, message))

        await self._client.subscribe(subject, cb=receive)

    async def close(self) -> None:
        """Sends what waits and closes the connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client.is_connected:
            await self._client.flush(timeout=1)
        await self._client.close()

    async def _reconnected(self) -> None:
        self._streams.clear()
        log.info("bus reconnected", extra={"event": "bus_reconnected"})
        for callback in self._on_reconnect:
            await callback()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, event_type: type[E], handler: Handler[E], message: Msg) -> None:
        try:
            await handler(event_type.FromString(message.data))
            if message.reply:
                await message.respond(b"")
        except DecodeError:
            log.exception("event cannot be read", extra=_about(message, "event_unreadable"))
        except Exception:
            # Not acknowledged: its sender repeats it, or reconciliation heals the loss.
            log.exception("event handler failed", extra=_about(message, "event_handler_failed"))
        finally:
            self._slots.release()

    async def _consume_durable(
        self, event_type: type[E], handler: Handler[E], subject: str, durable: str
    ) -> None:
        while True:
            try:
                await self._ensure_stream(subject)
                subscription = await self._jetstream.pull_subscribe(
                    subject, durable=durable, config=ConsumerConfig(ack_wait=ACK_WAIT_S)
                )
                await self._drain(event_type, handler, subscription)
            except Exception as error:  # noqa: BLE001 - the outermost loop of a consumer
                # The server restarts or its store was deleted: look again, calmly.
                self._streams.discard(subject)
                log.warning(
                    "durable consumer starts again",
                    extra={"event": "consumer_restarted", "subject": subject, "why": repr(error)},
                )
                await asyncio.sleep(CONSUMER_RESTART_S)

    async def _drain(
        self,
        event_type: type[E],
        handler: Handler[E],
        subscription: JetStreamContext.PullSubscription,
    ) -> None:
        while True:
            try:
                messages = await subscription.fetch(64, timeout=FETCH_WAIT_S)
            except TimeoutError:
                await subscription.consumer_info()
                continue
            for message in messages:
                await self._handle_durable(event_type, handler, message)

    async def _handle_durable(self, event_type: type[E], handler: Handler[E], message: Msg) -> None:
        try:
            event = event_type.FromString(message.data)
            traceparent = (message.headers or {}).get("traceparent", "")
            with telemetry.use_traceparent(traceparent):
                await handler(event)
            await message.ack()
        except DecodeError:
            await self._park(message)
        except Exception:
            log.exception("event handler failed", extra=_about(message, "event_handler_failed"))
            if message.metadata.num_delivered >= DELIVERY_COUNT_MAX:
                await self._park(message)
            else:
                await message.nak(delay=message.metadata.num_delivered)

    async def _park(self, message: Msg) -> None:
        log.error("event parked as a dead letter", extra=_about(message, "event_parked"))
        await self._ensure_stream(DEAD_LETTERS)
        await self._jetstream.publish(
            DEAD_LETTERS, message.data, headers={"Reprise-Subject": message.subject}
        )
        await message.term()

    async def _ensure_stream(self, subject: str) -> None:
        if subject in self._streams:
            return
        config = StreamConfig(
            name=subject.replace(".", "-"), subjects=[subject], max_age=STREAM_AGE_MAX_S
        )
        await self._jetstream.add_stream(config)
        self._streams.add(subject)


def _about(message: Msg, event: str) -> dict[str, str]:
    return {"event": event, "subject": message.subject}


async def _log_error(error: Exception) -> None:
    log.warning("bus trouble", extra={"event": "bus_trouble", "why": repr(error)})
