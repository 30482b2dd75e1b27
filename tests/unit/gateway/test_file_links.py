"""Signed URLs, and stored files inside JSON texts."""

import base64
import hashlib
import hmac
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidInput, PermissionDenied
from services.gateway.file_links import (
    LinkSigner,
    decode_data_url,
    file_ids,
    find_data_urls,
    replace_files,
    take_in_file_urls,
)

ID = "Abc-_" + "0" * 27
SIGNER = LinkSigner("a key for this test", 3600, clock=lambda: 7200.0)
HOSTS = frozenset({"h:8080"})


def test_the_signature_is_replicates() -> None:
    parts = urlsplit(SIGNER.url(base_url="https://h", owner="acme", file_id=ID))
    values = {name: items[0] for name, items in parse_qs(parts.query).items()}
    message = f"acme {ID} {values['expiry']}".encode()
    digest = hmac.digest(b"a key for this test", message, hashlib.sha256)
    assert values["signature"] == base64.b64encode(digest).decode()
    assert parts.path == f"/v1/files/{ID}/download"
    assert int(values["expiry"]) >= 7200 + 3600
    assert SIGNER.owner_of(file_id=ID, query=parts.query) == "acme"


def test_a_signature_opens_one_file_of_one_owner_for_a_time() -> None:
    query = urlsplit(SIGNER.url(base_url="", owner="acme", file_id=ID)).query
    later = LinkSigner("a key for this test", 3600, clock=lambda: 7200.0 + 2 * 3600 + 1)
    other_key = LinkSigner("another key for it", 3600, clock=lambda: 7200.0)
    for signer, file_id, text in (
        (SIGNER, "x" * 32, query),
        (SIGNER, ID, query.replace("acme", "other")),
        (SIGNER, ID, query.replace("expiry=", "expiry=9")),
        (SIGNER, ID, "signature=x"),
        (SIGNER, ID, "signature=%C3%A9&owner=a&expiry=b"),
        (other_key, ID, query),
        (later, ID, query),
    ):
        with pytest.raises(PermissionDenied):
            signer.owner_of(file_id=file_id, query=text)
    assert SIGNER.owner_of(file_id=ID, query="") is None


def test_the_url_of_a_file_stays_the_same_for_a_while() -> None:
    urls = {
        LinkSigner("a key for this test", 3600, clock=lambda now=now: now).url(
            base_url="", owner="a", file_id=ID
        )
        for now in (7200.0, 7300.0, 10000.0)
    }
    assert len(urls) == 1


def test_only_whole_string_values_are_files() -> None:
    text = (
        f'{{"a":"reprise-file:{ID}","reprise-file:{ID}": 1,"b":["reprise-file:{ID}"],'
        f'"c":"see reprise-file:{ID}","d":"\\"reprise-file:{ID}","n":1.0}}'
    )
    assert file_ids(text) == [ID, ID]
    replaced = replace_files(text, {ID: "U"})
    value = orjson.loads(replaced)
    assert (value["a"], value["b"], value["c"]) == ("U", ["U"], f"see reprise-file:{ID}")
    assert value["d"] == f'"reprise-file:{ID}'
    assert f"reprise-file:{ID}" in value
    assert replaced.endswith('"n":1.0}')


@given(st.recursive(st.text() | st.just(f"reprise-file:{ID}"), st.lists, max_leaves=8))
def test_replacing_equals_a_walk_through_the_parsed_value(value: object) -> None:
    def walk(item: object) -> object:
        if isinstance(item, list):
            return [walk(inner) for inner in item]
        return "U" if item == f"reprise-file:{ID}" else item

    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return
    assert orjson.loads(replace_files(text, {ID: "U"})) == walk(value)


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        (f"http://h:8080/v1/files/{ID}", True),
        (f"https://h:8080/v1/files/{ID}", True),
        (f"http://H:8080/v1/v1/files/{ID}", True),
        (f"http:\\/\\/h:8080\\/v1\\/files\\/{ID}", True),
        (f"http://h:8080/v1/files/{ID}/download?expiry=1&owner=acme&signature=x", True),
        (f"http://h:8080/v1/files/{ID}/download/name.png", True),
        (f"http://h:8080/v1/files/{ID}/download?expiry=1&owner=other&signature=x", False),
        (f"http://evil/v1/files/{ID}", False),
        (f"http://h:8080@evil/v1/files/{ID}", False),
        (f"http://h:8080/other/v1/files/{ID}", False),
        (f"http://h:8080/v1/files/{ID}/other", False),
        (f"ftp://h:8080/v1/files/{ID}", False),
    ],
)
def test_urls_of_own_files_are_taken_in(url: str, is_taken: bool) -> None:
    text = f'{{"x":["{url}", 1.0]}}'
    expected = f'{{"x":["reprise-file:{ID}", 1.0]}}' if is_taken else text
    assert take_in_file_urls(text, hosts=HOSTS, account_id="acme") == expected


def test_long_data_urls_are_found_and_decoded() -> None:
    content = bytes(range(256)) * 10
    payload = base64.b64encode(content).decode()
    for spelling in (payload, payload.replace("/", "\\/"), payload.replace("=", "%3D")):
        text = f'{{"a":"data:image/png;base64,{spelling}","data:x,":"data:,short"}}'
        (match,) = find_data_urls(text, longer_than=100)
        decoded = decode_data_url(match, "input")
        assert (decoded.content_type, decoded.content) == ("image/png", content)
    (plain,) = find_data_urls('"data:,a%20b' + "c" * 200 + '"', longer_than=100)
    assert decode_data_url(plain, "input").content == b"a b" + b"c" * 200


def test_broken_base64_names_the_field() -> None:
    (match,) = find_data_urls('"data:a/b;base64,' + "*" * 200 + '"', longer_than=100)
    with pytest.raises(InvalidInput) as caught:
        decode_data_url(match, "input")
    assert caught.value.fields[0].field == "input"


def test_a_query_with_more_parameters_than_any_of_ours_signs_nothing() -> None:
    query = "&".join(f"p{index}=1" for index in range(50))
    assert SIGNER.owner_of(file_id=ID, query=f"{query}&signature=x") is None
    text = f'"http://h:8080/v1/files/{ID}?{query}&owner=other"'
    assert take_in_file_urls(text, hosts=HOSTS, account_id="acme") == text
