"""Tokens and the memory of them."""

import asyncio

import pytest
from reprise.wire.v1 import options_pb2

from services.chassis.errors import PermissionDenied, Unauthenticated
from services.gateway.auth import (
    CACHE_AGE_MAX_S,
    Authenticator,
    Identity,
    check_access,
    digest_of,
    new_token,
    token_of,
)

ACME = Identity("acme")


class Tokens:
    """A database of tokens that counts its look-ups."""

    def __init__(self, *tokens: str) -> None:
        self.digests = {digest_of(token): ACME for token in tokens}
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def __call__(self, digest: str) -> Identity | None:
        self.count += 1
        found = self.digests.get(digest)
        self.asked.set()
        await self.gate.wait()
        return found


def test_a_new_token_is_long_and_unlike_any_other() -> None:
    first, second = new_token(), new_token()
    assert (len(first), first[:3]) == (43, "rp_")
    assert first != second


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer x", "x"),
        ("Token x", "x"),
        ("bearer  x ", "x"),
        ("Basic x", ""),
        ("x", ""),
        ("", ""),
        ("Bearer " + "x" * 201, ""),
    ],
)
def test_the_token_in_a_header(header: str, token: str) -> None:
    assert token_of(header) == token


async def test_a_known_token_is_looked_up_once() -> None:
    tokens = Tokens("t")
    authenticator = Authenticator(tokens)
    for _ in range(3):
        assert await authenticator.identify("Bearer t") == ACME
    assert tokens.count == 1


async def test_an_unknown_token_is_refused_each_time() -> None:
    authenticator = Authenticator(Tokens())
    for header in ("Bearer t", "Bearer t", ""):
        with pytest.raises(Unauthenticated):
            await authenticator.identify(header)


async def test_a_forgotten_token_is_looked_up_again() -> None:
    tokens = Tokens("t")
    authenticator = Authenticator(tokens)
    await authenticator.identify("Bearer t")
    tokens.digests.clear()
    authenticator.forget(digest_of("t"))
    with pytest.raises(Unauthenticated):
        await authenticator.identify("Bearer t")


async def test_a_revocation_during_the_look_up_is_not_overwritten() -> None:
    tokens = Tokens("t")
    tokens.gate.clear()
    authenticator = Authenticator(tokens)
    looking = asyncio.create_task(authenticator.identify("Bearer t"))
    await asyncio.wait_for(tokens.asked.wait(), 5)
    tokens.digests.clear()
    authenticator.forget_all()
    tokens.gate.set()
    await looking
    with pytest.raises(Unauthenticated):
        await authenticator.identify("Bearer t")


async def test_what_is_known_grows_old() -> None:
    now = [0.0]
    tokens = Tokens("t")
    authenticator = Authenticator(tokens, clock=lambda: now[0])
    await authenticator.identify("Bearer t")
    now[0] = CACHE_AGE_MAX_S + 1
    await authenticator.identify("Bearer t")
    assert tokens.count == 2


def test_only_operators_pass_where_operators_are_asked_for() -> None:
    check_access(options_pb2.ACCESS_TOKEN, ACME)
    check_access(options_pb2.ACCESS_OPERATOR, Identity("root", is_operator=True))
    with pytest.raises(PermissionDenied):
        check_access(options_pb2.ACCESS_OPERATOR, ACME)
