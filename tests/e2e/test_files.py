"""Files in and out, as the official client sends and receives them."""

import base64
import io
import ssl
from pathlib import Path

import httpx
import pytest
from replicate.client import Client
from replicate.helpers import FileOutput

from tests.e2e.mesh import Mesh, start_mesh


@pytest.fixture
def client(mesh: Mesh) -> Client:
    return Client(api_token=mesh.token, base_url=mesh.url)


def test_a_local_file_goes_in_and_a_file_comes_out(client: Client, mirror: str) -> None:
    output = client.run(f"local/mirror:{mirror}", input={"file": io.BytesIO(b"abcdef")})
    assert isinstance(output, FileOutput)
    assert output.read() == b"fedcba"


def test_a_data_url_goes_in(mesh: Mesh, mirror: str) -> None:
    content = base64.b64encode(b"12345" * 20_000).decode()
    prediction_id = mesh.create(mirror, file=f"data:application/octet-stream;base64,{content}")
    prediction = mesh.finish(prediction_id)
    assert prediction["status"] == "succeeded", prediction["error"]
    output = prediction["output"]
    assert base64.b64decode(output.partition(",")[2]) == b"54321" * 20_000


def test_an_upload_is_listed_downloaded_and_removed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("remember")
    file = client.files.create(path)
    assert (file.name, file.size, file.content_type) == ("note.txt", 8, "text/plain")
    assert file.id in [item.id for item in client.files.list()]
    assert client.files.get(file.id).etag == file.etag
    client.files.delete(file.id)
    assert file.id not in [item.id for item in client.files.list()]


def test_a_file_of_another_account_is_not_found(mesh: Mesh, mirror: str) -> None:
    file = Client(api_token=mesh.token, base_url=mesh.url).files.create(io.BytesIO(b"secret"))
    with mesh.http() as http:
        token = http.post("/v1/accounts", json={"username": "eve", "name": "Eve"}).json()["token"]
    with mesh.http(token) as http:
        assert http.get(f"/v1/files/{file.id}").status_code == 404
        assert http.get(f"/v1/files/{file.id}/download").status_code == 404
        assert http.delete(f"/v1/files/{file.id}").status_code == 404


def test_a_url_into_the_private_network_is_refused(mesh: Mesh, mirror: str) -> None:
    prediction = mesh.finish(mesh.create(mirror, file=f"{mesh.url}/healthz"))
    assert prediction["status"] == "failed"
    assert "file" in prediction["error"]
    assert prediction["cost"]["status"] == "released"


def test_over_tls_outputs_are_signed_urls_that_need_no_token(tmp_path: Path, echo: str) -> None:
    project = Path(__file__).parent / "projects" / "mirror"
    with start_mesh(tmp_path / "tls", "--tls") as mesh:
        mesh.push("local/mirror", project)
        authority = ssl.create_default_context(cafile=mesh.data / "tls" / "ca.pem")
        transport = httpx.HTTPTransport(verify=authority)
        client = Client(api_token=mesh.token, base_url=mesh.url, transport=transport)
        output = client.run("local/mirror", input={"file": io.BytesIO(b"tls")})
        assert isinstance(output, FileOutput)
        assert output.url.startswith("https:")
        answer = httpx.get(output.url, verify=authority)
        assert answer.content == b"slt"
        forged = output.url.replace("signature=", "signature=A")
        assert httpx.get(forged, verify=authority).status_code in (401, 403)
