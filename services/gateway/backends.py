"""The services behind the gateway, called by method descriptor."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from services.chassis import errors
from services.chassis.channels import Peer
from services.chassis.errors import Unavailable
from services.gateway.auth import Identity
from services.gateway.routes import owner_of, rpc_path

# Pause before a call goes out again to a service that restarts.
RETRY_PAUSE_S = 0.1


class Backends:
    """Every public rpc, bound to the channel of the service that owns it."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self.peers = dict(peers)
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    def peer_of(self, method: MethodDescriptor) -> Peer:
        """The service that owns the method."""
        return self.peers[owner_of(method)]

    async def call(
        self,
        method: MethodDescriptor,
        request: Any,
        *,
        identity: Identity,
        request_id: str,
        timeout_s: float,
    ) -> Any:
        """One unary call; it outlives a restart of the service within its time."""
        peer = self.peer_of(method)
        rpc = self._unary.get(method.full_name) or self._bind_unary(method)
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while True:
            try:
                return await peer.call(
                    rpc,
                    request,
                    timeout_s=left_s,
                    account_id=identity.account_id,
                    is_operator=identity.is_operator,
                    request_id=request_id,
                )
            except Unavailable as error:
                left_s = deadline - time.monotonic()
                if left_s <= RETRY_PAUSE_S or not is_connection_loss(error):
                    raise
            # The request id makes the repeat harmless: the service answers what it began before.
            await asyncio.sleep(RETRY_PAUSE_S)
            left_s -= RETRY_PAUSE_S
            _shorten_wait(request, left_s)

    async def call_upload(
        self,
        method: MethodDescriptor,
        requests: Callable[[], AsyncIterator[Any]],
        *,
        identity: Identity,
        request_id: str,
        timeout_s: float,
    ) -> Any:
        """One client-streaming call; its requests are made anew where it must be repeated."""
        peer = self.peer_of(method)
        rpc = self._unary.get(method.full_name) or self._bind_unary(method)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await peer.call(
                    rpc,
                    requests(),
                    timeout_s=deadline - time.monotonic(),
                    account_id=identity.account_id,
                    is_operator=identity.is_operator,
                    request_id=request_id,
                )
            except Unavailable as error:
                is_late = time.monotonic() + RETRY_PAUSE_S >= deadline
                if is_late or not is_connection_loss(error):
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    def stream(
        self, method: MethodDescriptor, request: Any, *, identity: Identity, request_id: str
    ) -> AsyncIterator[Any]:
        """The answers of a server-streaming call."""
        return self.peer_of(method).stream(
            self._stream_of(method),
            request,
            account_id=identity.account_id,
            is_operator=identity.is_operator,
            request_id=request_id,
        )

    def open_stream(self, method: MethodDescriptor, request: Any, *, identity: Identity) -> Any:
        """A server-streaming call; whoever opens it cancels it."""
        metadata = self.peer_of(method).metadata(identity.account_id, identity.is_operator)
        return self._stream_of(method)(request, metadata=metadata)

    def _bind_unary(self, method: MethodDescriptor) -> Any:
        channel = self.peer_of(method).channel
        bind = channel.stream_unary if method.client_streaming else channel.unary_unary
        rpc = self._unary[method.full_name] = bind(rpc_path(method), **_codecs(method))
        return rpc

    def _stream_of(self, method: MethodDescriptor) -> Any:
        rpc = self._streams.get(method.full_name)
        if rpc is None:
            bind = self.peer_of(method).channel.unary_stream
            rpc = self._streams[method.full_name] = bind(rpc_path(method), **_codecs(method))
        return rpc


def is_connection_loss(error: Unavailable) -> bool:
    """Whether nobody answered, as opposed to a service that said no."""
    cause = error.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError):
        return False
    if cause.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return False
    return all(key != errors.DETAILS_KEY for key, _ in cause.trailing_metadata() or ())


def _codecs(method: MethodDescriptor) -> dict[str, Any]:
    return {
        "request_serializer": GetMessageClass(method.input_type).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }


def _shorten_wait(request: Any, left_s: float) -> None:
    """A repeated blocking call may wait for what is left of its time only."""
    field = getattr(request, "DESCRIPTOR", None) and request.DESCRIPTOR.fields_by_name.get("wait")
    if field is not None and request.HasField("wait") and request.wait.seconds + 1 > left_s:
        request.wait.FromMilliseconds(max(0, int((left_s - 1) * 1000)))
