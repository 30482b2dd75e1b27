"""Files over HTTP: upload forms, signed downloads, files in inputs and outputs."""

import base64
import hashlib
import json
from pathlib import Path

import httpx
import pytest

from services.gateway.file_links import LinkSigner
from tests.integration.gateway.process import SIGNING_KEY, TOKEN, GatewayProcess

VERSION = "0" * 64
BOUNDARY = "xYzZY"


def _form(*parts: tuple[str, bytes]) -> bytes:
    pieces = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(pieces) + f"--{BOUNDARY}--\r\n".encode()


_CONTENT = b"\x00line\r\n--almost\r\n" * 50
SHAPES = {
    "js: metadata is a part with a file name, after the content": _form(
        ('name="content"; filename="a.png"\r\nContent-Type: image/png', _CONTENT),
        ('name="metadata"; filename="blob"\r\nContent-Type: application/json', b'{"k":"v"}'),
    ),
    "py2: fields override the part": _form(
        ('name="filename"', b"a.png"),
        ('name="type"', b"image/png"),
        ('name="metadata[k]"', b"v"),
        ('name="content"; filename="upload"\r\nContent-Type: text/plain', _CONTENT),
    ),
    "py1 and go: metadata is a text field": _form(
        ('name="metadata"', b'{"k":"v"}'),
        ('name="content"; filename="a.png"\r\nContent-Type: image/png', _CONTENT),
    ),
    "curl: metadata has a type": _form(
        ('name="content"; filename="a.png"\r\nContent-Type: image/png', _CONTENT),
        ('name="metadata"\r\nContent-Type: application/json', b'{"k":"v"}'),
    ),
}


def _post(http: httpx.Client, body: bytes) -> httpx.Response:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return http.post("/v1/files", content=body, headers=headers)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_the_form_stores_the_same_file(
    http: httpx.Client, gateway: GatewayProcess, shape: str
) -> None:
    answer = _post(http, SHAPES[shape])
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert (file["name"], file["content_type"]) == ("a.png", "image/png")
    assert (file["size"], file["metadata"]) == (len(_CONTENT), {"k": "v"})
    assert file["checksums"]["sha256"] == hashlib.sha256(_CONTENT).hexdigest()
    assert file["urls"] == {"get": f"{gateway.url}/v1/files/{file['id']}"}
    assert answer.headers["location"] == file["urls"]["get"]


def test_nested_bracket_fields_become_an_object(http: httpx.Client) -> None:
    body = _form(
        ('name="metadata[a][b]"', b"1"), ('name="metadata[c]"', b"2"), ('name="content"', b"x")
    )
    file = _post(http, body).json()
    assert file["metadata"] == {"a": {"b": "1"}, "c": "2"}
    assert (file["name"], file["content_type"]) == ("file", "application/octet-stream")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (_form(('name="metadata"', b"{}")), "content"),
        (_form(('name="content"', b"x"), ('name="metadata"', b"[1]")), "metadata"),
        (_form(('name="content"', b"x"), ('name="filename"', b"n" * 256)), "filename"),
        (_form(('name="content"', b"x"), ('name="content"', b"y")), "content"),
    ],
)
def test_a_broken_form_is_refused_by_field(http: httpx.Client, body: bytes, field: str) -> None:
    answer = _post(http, body)
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["field"] == field


def test_a_cut_form_stores_nothing(http: httpx.Client, gateway: GatewayProcess) -> None:
    answer = _post(http, SHAPES["curl: metadata has a type"][:-30])
    assert answer.status_code == 400
    assert gateway.doubles.storage.files.files == {}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 422),
        ("multipart/form-data", 422),
        ("multipart/form-data; boundary=" + "b" * 300, 400),
    ],
)
def test_what_is_no_form_is_refused(http: httpx.Client, content_type: str, status: int) -> None:
    answer = http.post("/v1/files", content=b"{}", headers={"Content-Type": content_type})
    assert answer.status_code == status


def test_a_file_over_the_limit_is_refused_in_replicates_words(http: httpx.Client) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def chunks():  # type: ignore[no-untyped-def]
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="content"\r\n\r\n'.encode()
        for _ in range(101):
            yield bytes(2**20)

    answer = http.post("/v1/files", content=chunks(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "Files must be less than 100MB in size"


def test_a_signed_url_works_with_and_without_a_token(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    content = bytes(range(256)) * 4096
    file = gateway.doubles.storage.files.put(content, name='é".png', content_type="image/png")
    signer = LinkSigner(SIGNING_KEY, 3600)
    url = signer.url(base_url=gateway.url, owner="local", file_id=file.id)
    for token in ("", TOKEN, "invalid"):
        with gateway.http(token=token) as reader:
            answer = reader.get(url)
        assert answer.status_code == 200
        assert answer.content == content
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert "filename*=UTF-8''%C3%A9%22.png" in answer.headers["content-disposition"]
    assert http.get(f"/v1/files/{file.id}/download").content == content


def test_a_wrong_old_or_missing_signature_opens_nothing(gateway: GatewayProcess) -> None:
    file = gateway.doubles.storage.files.put(b"secret")
    signer = LinkSigner(SIGNING_KEY, 3600)
    good = signer.url(base_url="", owner="local", file_id=file.id)
    old = LinkSigner(SIGNING_KEY, 60, clock=lambda: 1e9).url(
        base_url="", owner="local", file_id=file.id
    )
    with gateway.http(token="") as http:
        assert http.get(good.replace("owner=local", "owner=other")).status_code == 403
        assert http.get(old).status_code == 403
        assert http.get(f"/v1/files/{file.id}/download").status_code == 401
        missing = signer.url(base_url="", owner="local", file_id="x" * 32)
        assert http.get(missing).status_code == 404


def test_an_empty_file_can_be_downloaded(http: httpx.Client, gateway: GatewayProcess) -> None:
    file = gateway.doubles.storage.files.put(b"")
    answer = http.get(f"/v1/files/{file.id}/download")
    assert (answer.status_code, answer.content) == (200, b"")


def test_file_urls_in_an_input_become_stored_files(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    own, other = "a" * 32, "b" * 32
    signer = LinkSigner(SIGNING_KEY, 3600)
    value = {
        "plain": f"{gateway.url}/v1/files/{own}",
        "signed": [signer.url(base_url=gateway.url, owner="local", file_id=own)],
        "foreign": signer.url(base_url=gateway.url, owner="other", file_id=other),
        "elsewhere": f"https://example.org/v1/files/{own}",
        "said": f'see "{gateway.url}/v1/files/{own}"',
    }
    http.post("/v1/predictions", json={"version": VERSION, "input": value})
    seen = json.loads(gateway.doubles.scheduler.requests[0].input.text)
    assert seen == value | {"plain": f"reprise-file:{own}", "signed": [f"reprise-file:{own}"]}


def test_long_data_urls_in_an_input_are_stored_first(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    content = bytes(100_000)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    short = "data:text/plain;base64,aGk="
    body = {"version": VERSION, "input": {"deep": [{"image": url}], "short": short, "n": 1.50}}
    assert http.post("/v1/predictions", json=body).status_code == 201
    ((file_id, file),) = gateway.doubles.storage.files.files.items()
    assert gateway.doubles.storage.files.contents[file_id] == content
    assert file.content_type == "image/png"
    seen = json.loads(gateway.doubles.scheduler.requests[0].input.text)
    assert seen == {"deep": [{"image": f"reprise-file:{file_id}"}], "short": short, "n": 1.5}
    broken = {"version": VERSION, "input": {"image": url + "*"}}
    assert http.post("/v1/predictions", json=broken).status_code == 422


def test_output_files_are_data_urls_on_plain_http_and_signed_urls_in_lists(
    http: httpx.Client, gateway: GatewayProcess
) -> None:
    file = gateway.doubles.storage.files.put(b"GIF", content_type="image/gif")
    gateway.doubles.scheduler.output = json.dumps([f"reprise-file:{file.id}"])
    body = {"version": VERSION, "input": {"image": f"reprise-file:{file.id}"}}
    created = http.post("/v1/predictions", json=body).json()
    assert created["output"] == ["data:image/gif;base64,R0lG"]
    # Inputs are echoed as URLs, never with their bytes.
    assert created["input"]["image"].startswith(f"{gateway.url}/v1/files/{file.id}/download?")
    listed = http.get("/v1/predictions").json()["results"][0]["output"][0]
    assert listed.startswith(f"{gateway.url}/v1/files/{file.id}/download?")
    assert http.get(listed).content == b"GIF"


def test_large_or_lost_output_files_are_urls(http: httpx.Client, gateway: GatewayProcess) -> None:
    file = gateway.doubles.storage.files.put(bytes(8 * 2**20 + 1))
    lost = "c" * 32
    gateway.doubles.scheduler.output = json.dumps(
        [f"reprise-file:{file.id}", f"reprise-file:{lost}", f"a reprise-file:{lost}"]
    )
    large, gone, text = http.post("/v1/predictions", json={"version": VERSION}).json()["output"]
    assert large.startswith(f"{gateway.url}/v1/files/{file.id}/download?")
    assert gone.startswith(f"{gateway.url}/v1/files/{lost}/download?")
    assert text == f"a reprise-file:{lost}"


def test_uploads_leave_no_files_behind(http: httpx.Client, tmp_path: Path) -> None:
    assert _post(http, _form(('name="content"', bytes(3 * 2**20)))).status_code == 201
