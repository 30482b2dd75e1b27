"""Request ids of posts that clients send again."""

from services.gateway.repeats import MEMORY_AGE_S, RequestIds


def _assign(ids: RequestIds, count: str | None, *, account: str = "a", body: bytes = b"{}") -> str:
    headers = {} if count is None else {b"x-stainless-retry-count": count.encode()}
    return ids.assign(account_id=account, path="/v1/predictions", headers=headers, body=body)


def test_a_marked_repeat_has_the_id_of_the_first_try() -> None:
    ids = RequestIds()
    first = _assign(ids, "0")
    assert _assign(ids, "1") == first
    assert _assign(ids, "2") == first


def test_equal_requests_that_are_no_repeats_are_different() -> None:
    ids = RequestIds()
    assert len({_assign(ids, None), _assign(ids, None), _assign(ids, "0"), _assign(ids, "0")}) == 4


def test_a_repeat_follows_the_latest_first_try() -> None:
    ids = RequestIds()
    _assign(ids, "0")
    latest = _assign(ids, "0")
    assert _assign(ids, "1") == latest


def test_other_accounts_and_bodies_share_nothing() -> None:
    ids = RequestIds()
    first = _assign(ids, "0")
    assert _assign(ids, "1", account="b") != first
    assert _assign(ids, "1", body=b"[]") != first


def test_old_tries_are_forgotten() -> None:
    now = [0.0]
    ids = RequestIds(clock=lambda: now[0])
    first = _assign(ids, "0")
    now[0] = MEMORY_AGE_S + 1
    assert _assign(ids, "1") != first
