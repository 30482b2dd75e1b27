"""Tokens and names of the tensor port."""

from typing import Any, cast

import pytest

from services.chassis.errors import InvalidInput, Unauthenticated
from services.inference.oip_access import EngineCatalogue, Remembered, TokenCheck


class FakeGatewayPeer:
    """Answers Authenticate for one token and counts the questions."""

    def __init__(self) -> None:
        self.questions = 0
        self.channel = self

    def unary_unary(self, *_: Any, **__: Any) -> object:
        return object()

    async def call(self, method: object, request: Any, *, timeout_s: float) -> Any:
        self.questions += 1
        if request.token != "good":
            raise Unauthenticated("the token is unknown")
        return type("Answer", (), {"account_id": "alice"})()


def test_what_is_remembered_ends_and_is_bounded() -> None:
    now = 0.0
    remembered: Remembered[int] = Remembered(10, clock=lambda: now)
    remembered.put("a", 1)
    assert remembered.get("a") == 1
    now = 11
    assert remembered.get("a") is None
    for number in range(20_000):
        remembered.put(str(number), number)
    assert remembered.get("0") is None
    assert remembered.get("19999") == 19_999


async def test_a_token_is_asked_for_once_and_again_after_its_revocation() -> None:
    gateway = FakeGatewayPeer()
    tokens = TokenCheck(cast(Any, gateway), time_to_live_s=30)
    for _ in range(3):
        assert await tokens.account_id("Bearer good") == "alice"
    assert gateway.questions == 1
    tokens.forget("770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c")
    await tokens.account_id("Token good")
    assert gateway.questions == 2


async def test_a_refusal_is_not_remembered() -> None:
    gateway = FakeGatewayPeer()
    tokens = TokenCheck(cast(Any, gateway), time_to_live_s=30)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await tokens.account_id("Bearer bad")
    assert gateway.questions == 2


@pytest.mark.parametrize("text", ["", "good", "Basic good", "Bearer " + "x" * 1000])
async def test_a_missing_or_odd_authorization_is_refused_without_a_question(text: str) -> None:
    gateway = FakeGatewayPeer()
    tokens = TokenCheck(cast(Any, gateway), time_to_live_s=30)
    with pytest.raises(Unauthenticated):
        await tokens.account_id(text)
    assert gateway.questions == 0


@pytest.mark.parametrize("name", ["", "plain", "a/b/c", "a/" + "x" * 300])
async def test_a_name_that_cannot_be_a_model_is_refused(name: str) -> None:
    engines = EngineCatalogue(cast(Any, None), time_to_live_s=30)
    with pytest.raises(InvalidInput, match="owner/name"):
        await engines.find(name, "", "alice")
