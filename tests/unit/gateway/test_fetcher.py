"""The guarded fetcher against hostile URLs and small local servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from services.chassis.errors import InvalidInput, ResourceExhausted
from services.gateway.fetcher import Fetcher

GUARDED = Fetcher(size_max=1000, timeout_s=5)
LOCAL = Fetcher(size_max=1000, timeout_s=5, allow_networks=["127.0.0.1/32"])


async def _fetch(fetcher: Fetcher, url: str) -> tuple[bytes, str, str]:
    chunks = [chunk async for chunk in fetcher.fetch(url)]
    return b"".join(chunk.content for chunk in chunks), chunks[0].content_type, chunks[0].name


@contextlib.asynccontextmanager
async def _server(answer: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = answer(request)
        return await response if asyncio.iscoroutine(response) else response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8080/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/",
        "http://192.0.0.192/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://240.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://user:secret@example.org/",
        "http://example.org@127.0.0.1/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "data:text/plain,x",
        "http://",
        "http:///path",
        "http://[::1",
        "http://h:99999/",
        "//127.0.0.1/",
        "http://127。0。0。1/",
        "http://" + "a" * 9000,
        "",
    ],
)
async def test_a_url_to_anything_but_the_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await asyncio.wait_for(_fetch(GUARDED, url), 5)
    assert caught.value.fields[0].field == "url"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert GUARDED.is_allowed(address)


def test_only_the_networks_of_the_operator_are_opened() -> None:
    assert LOCAL.is_allowed("127.0.0.1")
    assert LOCAL.is_allowed("::ffff:127.0.0.1")
    assert not LOCAL.is_allowed("127.0.0.2")
    assert not LOCAL.is_allowed("::1")


async def test_content_type_and_name_come_with_the_bytes() -> None:
    def answer(request: web.Request) -> web.Response:
        assert request.headers["User-Agent"] == "reprise-fetch"
        return web.Response(body=b"x" * 1000, content_type="image/png")

    async with _server(answer) as url:
        found = await _fetch(LOCAL, f"{url}/dir/a%20b.png?q=1")
    assert found == (b"x" * 1000, "image/png", "a b.png")


async def test_redirects_are_followed_and_each_is_checked_again() -> None:
    def answer(request: web.Request) -> web.Response:
        step = int(request.path[1:])
        if step:
            return web.Response(status=302, headers={"Location": f"/{step - 1}"})
        return web.Response(body=b"end")

    async with _server(answer) as url:
        assert (await _fetch(LOCAL, f"{url}/3"))[0] == b"end"
        with pytest.raises(InvalidInput, match="redirects more than 3 times"):
            await _fetch(LOCAL, f"{url}/4")


@pytest.mark.parametrize("target", ["http://127.0.0.2/", "http://[::1]/", "file:///etc/passwd"])
async def test_a_redirect_inside_is_refused(target: str) -> None:
    async with _server(lambda _: web.Response(status=307, headers={"Location": target})) as url:
        with pytest.raises(InvalidInput, match=r"not public|must start with"):
            await _fetch(LOCAL, url)


async def test_a_name_with_one_inner_address_is_refused_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    with pytest.raises(InvalidInput, match="not public"):
        await _fetch(GUARDED, "http://example.org/")


async def test_the_checked_address_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    real, count = loop.getaddrinfo, 0

    async def resolve(host: str, port: int, **options: object) -> object:
        nonlocal count
        if host != "rebinding.test":
            return await real(host, port, **options)  # type: ignore[arg-type]
        count += 1
        return [(2, 1, 6, "", ("127.0.0.1" if count == 1 else "10.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    async with _server(lambda request: web.Response(text=request.host)) as url:
        found = await _fetch(LOCAL, url.replace("127.0.0.1", "rebinding.test"))
    assert found[0].startswith(b"rebinding.test:")
    assert count == 1


async def test_too_much_is_refused_announced_or_not() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(11):
                await response.write(b"x" * 100)
        return response

    for answer in (lambda _: web.Response(body=b"x" * 1001), stream):
        async with _server(answer) as url:
            with pytest.raises(ResourceExhausted):
                await _fetch(LOCAL, url)


async def test_a_slow_server_is_given_up() -> None:
    released = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    impatient = Fetcher(size_max=1000, timeout_s=0.05, allow_networks=["127.0.0.1/32"])
    async with _server(hang) as url:
        with pytest.raises(InvalidInput, match="did not answer"):
            await _fetch(impatient, url)
        released.set()


async def test_an_error_answer_and_a_closed_port_are_told() -> None:
    async with _server(lambda _: web.Response(status=404)) as url:
        with pytest.raises(InvalidInput, match="answered 404"):
            await _fetch(LOCAL, url)
    with pytest.raises(InvalidInput, match="cannot be fetched"):
        await _fetch(LOCAL, url)
