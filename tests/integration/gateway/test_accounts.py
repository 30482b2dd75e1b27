"""Accounts and tokens over HTTP, and what a revoked token can still do: nothing."""

import httpx

from tests.integration.gateway.process import GatewayProcess


def test_an_operator_makes_accounts_and_others_may_not(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    made = http.post("/v1/accounts", json={"username": "acme"})
    assert made.status_code == 201
    account, token = made.json()["account"], made.json()["token"]
    assert (account["username"], account["name"], account["type"]) == ("acme", "acme", "user")
    assert token.startswith("rp_")
    assert len(token) == 43
    with gateway.http(token) as acme:
        assert acme.get("/v1/account").json()["is_operator"] is False
        refused = acme.post("/v1/accounts", json={"username": "more"})
    assert (refused.status_code, refused.json()["reason"]) == (403, "OPERATOR_ONLY")
    again = http.post("/v1/accounts", json={"username": "acme"})
    assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")
    bad = http.post("/v1/accounts", json={"username": "Ac/me"})
    assert bad.json()["invalid_fields"][0]["field"] == "username"


def test_a_revoked_token_stops_working_at_once(http: httpx.Client, gateway: GatewayProcess) -> None:
    made = http.post("/v1/tokens", json={"name": "laptop"}).json()
    with gateway.http(made["secret"]) as laptop:
        assert laptop.get("/v1/account").status_code == 200
        names = [token["name"] for token in http.get("/v1/tokens").json()["results"]]
        assert names[0] == "laptop"
        path = f"/v1/tokens/{made['token']['id']}"
        answer = http.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert laptop.get("/v1/account").status_code == 401
        assert http.delete(path).status_code == 404


def test_tokens_are_paged_newest_first(http: httpx.Client) -> None:
    for name in ("first", "second", "third"):
        http.post("/v1/tokens", json={"name": name})
    page = http.get("/v1/tokens?page_size=2").json()
    assert [token["name"] for token in page["results"]] == ["third", "second"]
    following = http.get(page["next"]).json()["results"]
    assert following[0]["name"] == "first"


def test_predictions_of_other_accounts_are_not_found(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    created = http.post("/v1/predictions", json={"version": "0" * 64}).json()
    token = http.post("/v1/accounts", json={"username": "stranger"}).json()["token"]
    with gateway.http(token) as stranger:
        assert stranger.get(f"/v1/predictions/{created['id']}").status_code == 404


def test_a_cursor_that_is_not_of_the_tokens_list_is_named(http: httpx.Client) -> None:
    answer = http.get("/v1/tokens?cursor=eyJhIjoxfQ")
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["field"] == "page_token"
