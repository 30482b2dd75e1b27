"""gRPC methods of the gateway itself: accounts and tokens, and the guarded fetcher."""

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

from reprise.gateway.v1 import account_pb2, account_pb2_grpc, events_pb2, fetch_pb2, fetch_pb2_grpc

from services.chassis import paging
from services.chassis.bus import Bus
from services.chassis.clock import now_us
from services.chassis.errors import invalid_field
from services.chassis.server import caller
from services.gateway.auth import Authenticator, digest_of, new_token
from services.gateway.fetcher import Fetcher
from services.gateway.store import Store, token_of_row

PAGE_SIZE = 100
NAME_LENGTH_MAX = 255
_USERNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


class AccountServicer(account_pb2_grpc.AccountServiceServicer):
    """Accounts and their API tokens."""

    def __init__(self, store: Store, authenticator: Authenticator, bus: Bus) -> None:
        self._store = store
        self._authenticator = authenticator
        self._bus = bus

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, context: Any
    ) -> account_pb2.GetAccountResponse:
        account = await self._store.account(caller(context).account_id)
        return account_pb2.GetAccountResponse(account=account)

    async def CreateAccount(
        self, request: account_pb2.CreateAccountRequest, context: Any
    ) -> account_pb2.CreateAccountResponse:
        check_username(request.username)
        check_name(request.name)
        token = new_token()
        account = await self._store.add_account(
            username=request.username,
            name=request.name or request.username,
            digest=digest_of(token),
            token_id=secrets.token_hex(8),
            now_us=now_us(),
        )
        return account_pb2.CreateAccountResponse(account=account, token=token)

    async def CreateToken(
        self, request: account_pb2.CreateTokenRequest, context: Any
    ) -> account_pb2.CreateTokenResponse:
        check_name(request.name)
        secret = new_token()
        token = await self._store.add_token(
            username=caller(context).account_id,
            name=request.name or "token",
            digest=digest_of(secret),
            token_id=secrets.token_hex(8),
            now_us=now_us(),
        )
        return account_pb2.CreateTokenResponse(token=token, secret=secret)

    async def ListTokens(
        self, request: account_pb2.ListTokensRequest, context: Any
    ) -> account_pb2.ListTokensResponse:
        size = paging.bounded_page_size(request.page_size, default=PAGE_SIZE, maximum=PAGE_SIZE)
        page = await self._store.list_tokens(
            caller(context).account_id, page_token=request.page_token, page_size=size
        )
        return account_pb2.ListTokensResponse(
            tokens=[token_of_row(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def DeleteToken(
        self, request: account_pb2.DeleteTokenRequest, context: Any
    ) -> account_pb2.DeleteTokenResponse:
        digest = await self._store.delete_token(caller(context).account_id, request.token_id)
        self._authenticator.forget(digest)
        await self._bus.publish(events_pb2.TokenRevoked(token_digest=digest))
        return account_pb2.DeleteTokenResponse()

    async def Authenticate(
        self, request: account_pb2.AuthenticateRequest, context: Any
    ) -> account_pb2.AuthenticateResponse:
        identity = await self._authenticator.identify_token(request.token)
        return account_pb2.AuthenticateResponse(
            account_id=identity.account_id, is_operator=identity.is_operator
        )


class FetchServicer(fetch_pb2_grpc.FetchServiceServicer):
    """The guarded fetcher for the mesh."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def FetchUrl(
        self, request: fetch_pb2.FetchUrlRequest, context: Any
    ) -> AsyncIterator[fetch_pb2.FetchUrlResponse]:
        async for chunk in self._fetcher.fetch(request.url):
            yield fetch_pb2.FetchUrlResponse(
                chunk=chunk.content, content_type=chunk.content_type, name=chunk.name
            )


def check_username(username: str) -> None:
    """Refuses names that cannot stand in a URL path or look like somebody else's."""
    if not _USERNAME.fullmatch(username):
        text = "must be 1 to 40 lower-case letters, digits and inner dashes"
        raise invalid_field("username", text, "pattern")


def check_name(name: str) -> None:
    """Refuses names that are too long."""
    if len(name) > NAME_LENGTH_MAX:
        raise invalid_field("name", f"must be at most {NAME_LENGTH_MAX} characters", "max_length")
