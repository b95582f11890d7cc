"""Deadlines of connections, over real sockets; and what names and limits mean."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import resource
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tidepipe_common.descriptors import raise_limit, shares
from tidepipe_common.errors import ConfigError
from tidepipe_common.http.connection import Deadlines
from tidepipe_common.http.server import HttpServer
from tidepipe_common.http.site import ONCE, Site, sites
from tidepipe_common.limits import MAX_UNTAKEN_BYTES
from tidepipe_common.security.authority import CA_FILE, files_of, make_certificates
from tidepipe_common.security.credentials import BEARER, Credentials
from tidepipe_common.security.principals import ROUTER

LARGE = 32 * 2**20
"""More than the kernel takes for a client that does not read."""
FAST = Deadlines(head=0.3, idle=1, body_grace=0.1, body_rate=1000, body=30, dawdle=30, stalled=0.5)


async def _length(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


async def _large(request: Request) -> Response:
    return Response(b"x" * LARGE)


async def _endless(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


@contextlib.asynccontextmanager
async def served(deadlines: Deadlines = FAST, **settings: Any) -> AsyncIterator[HttpServer]:
    routes = [Route("/length", _length, methods=["POST"]), Route("/endless", _endless), Route("/seen", _seen)]
    routes.append(Route("/large", _large))
    server = HttpServer(Starlette(routes=routes), "127.0.0.1:0", grace_s=1, deadlines=deadlines, **settings)  # type: ignore[arg-type]
    running = asyncio.create_task(server.run())
    while server.standing is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield server
    server.stop()
    await running


async def call(server: HttpServer, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server hangs up."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


def _certified(folder: Path) -> tuple[Credentials, ssl.SSLContext]:
    """What a server shows that asks for no certificate, and what a client goes by."""
    make_certificates(folder, [], days=1)
    cert, key = files_of(folder, ROUTER)
    ca = folder / CA_FILE
    credentials = Credentials(ca_file=ca, cert_file=cert, key_file=key, clients=BEARER)
    return credentials, ssl.create_default_context(cafile=str(ca))


async def test_a_slow_reader_gets_all_of_an_answer_over_tls(tmp_path: Path) -> None:
    """Also if the connection ends with it. TLS's goodbye has a second: by then it has not begun to read."""
    credentials, context = _certified(tmp_path)
    async with served(Deadlines(), credentials=credentials) as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        await asyncio.sleep(1.5)
        async with asyncio.timeout(60):
            answer = await reader.read()
        assert len(answer.partition(b"\r\n\r\n")[2]) == LARGE
        writer.close()


HEAD = b"POST /length HTTP/1.1\r\nhost: localhost\r\n"


async def test_what_does_not_come_in_time_ends_the_connection() -> None:
    async with served() as server:
        silent, head, trickled, body = await asyncio.gather(
            call(server),
            call(server, HEAD),
            call(server, *[b"%c" % byte for byte in HEAD], pause_s=0.05),
            call(server, HEAD + b"content-length: 9000\r\n\r\nab", *[b"c"] * 20, pause_s=0.2),
        )
        assert silent == b""
        assert head.startswith(b"HTTP/1.1 408 ") and b"headers" in head
        assert trickled.startswith(b"HTTP/1.1 408 ")
        assert body.startswith(b"HTTP/1.1 408 ") and b"body" in body
        late = await call(server, HEAD + b"content-length: 2\r\n\r\nabPOST", pause_s=0.1)
        assert late.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in late, (
            "the next head has its deadline"
        )


async def test_a_server_that_leaves_answers_what_comes_over_connections_that_stand() -> None:
    request = HEAD + b"content-length: 2\r\n\r\nab"
    async with served() as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n2")
        server.leave()
        left = asyncio.create_task(server.emptied(20))
        await asyncio.sleep(0.2)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(host, int(port))
        assert not left.done(), "a request may come yet"
        writer.write(request)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer.lower()
        await left
        writer.close()


async def test_a_client_that_takes_nothing_is_left() -> None:
    async with served() as server:
        host, _, port = server.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.sleep(0.2)
        assert server.standing is not None and server.standing.open == 1
        async with asyncio.timeout(20):
            while server.standing.open:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        writer.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_answers_that_nobody_takes_are_bounded_together(tls: bool, tmp_path: Path) -> None:
    credentials, context = _certified(tmp_path) if tls else (Credentials(), None)
    async with served(Deadlines(), credentials=credentials) as server:
        host, _, port = server.address.rpartition(":")
        clients = [await asyncio.open_connection(host, int(port), limit=1024, ssl=context) for _ in range(6)]
        for _, writer in clients:
            writer.write(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.sleep(1.0)
        assert server.standing is not None and server.standing.open * LARGE <= MAX_UNTAKEN_BYTES + LARGE
        async with asyncio.timeout(30):
            taken = [len(await _all_of(reader)) for reader, _ in clients]
        # Whoever was not cut gets all of it.
        assert sum(size > LARGE for size in taken) == server.standing.open
        for _, writer in clients:
            writer.close()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """Of one answer of `/large`, or what there is of it."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        return head + await reader.readexactly(LARGE)
    return b""


async def test_at_the_limit_who_waits_makes_room_for_who_asks() -> None:
    async with served(connections=2) as server:
        host, _, port = server.address.rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        assert await idle[0][0].read() == b"", "the oldest has gone"
        for _, writer in idle:
            writer.write(HEAD + b"content-length: 5\r\n\r\n")
        await asyncio.sleep(0.05)
        # Both places are at work now.
        assert (await call(server)).startswith(b"HTTP/1.1 503 ")
        assert server.standing is not None
        assert (server.standing.given_up, server.standing.refused) == (1, 1)
        for _, writer in idle:
            writer.close()


async def test_a_body_that_dawdles_makes_room_as_well() -> None:
    async with served(dataclasses.replace(FAST, dawdle=0, body_grace=30), connections=2) as server:
        host, _, port = server.address.rpartition(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for _, writer in slow:
            writer.write(HEAD + b"content-length: 5\r\n\r\nab")
        await asyncio.sleep(0.1)
        answer = await call(server, HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nab")
        assert answer.startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError):
            assert await slow[0][0].read() == b""
        for _, writer in slow:
            writer.close()


async def _seen(request: Request) -> JSONResponse:
    return JSONResponse(
        {"host": request.headers["host"], "path": request.scope["path"], "q": request.url.query}
    )


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"GET http://127.0.0.1:9/seen?a=b HTTP/1.1", b'{"host":"127.0.0.1:9","path":"/seen","q":"a=b"}'),
        (b"GET HTTPS://LOCALHOST/seen HTTP/1.0", b'{"host":"LOCALHOST","path":"/seen","q":""}'),
        (b"GET http://localhost?a HTTP/1.1", b" 404 "),
        (b"GET http://evil.example/seen HTTP/1.1", b" 403 "),
        (b"GET http://localhost@evil.example/seen HTTP/1.1", b" 400 "),
        (b"GET http:///seen HTTP/1.1", b" 400 "),
        (b"GET ftp://localhost/seen HTTP/1.1", b" 400 "),
        (b"GET /seen HTTP/1.2", b" 505 "),
        (b"GET /seen HTTP/2.0", b" 505 "),
        (b"GET /seen HTTP/9.9", b" 505 "),
        (b"PRI * HTTP/2.0", b" 505 "),
        (b"GET /seen HTTP/1", b" 505 "),
        (b"GET /seen", b" 400 "),
        (b"GET /seen http/1.1", b" 400 "),
    ],
)
async def test_a_target_is_a_path_or_a_url_of_this_server(line: bytes, answer: bytes) -> None:
    async with served() as server:
        # Of two hosts the one in the target counts.
        got = await call(server, line + b"\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
    assert answer in got, got


@pytest.mark.parametrize("name", sorted(ONCE - {b"host", b"content-length"}))
async def test_what_decides_something_stands_once(name: bytes) -> None:
    async with served() as server:
        head = b"GET /seen HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        got = await call(server, head + (name + b": none\r\n") * 2 + b"\r\n")
        assert b" 400 " in got and b'"param":"%s"' % name in got, got
        traced = await call(server, head + b"x-request-id: a\r\nx-request-id: b\r\n\r\n")
        assert b" 200 " in traced


def test_shares_leave_descriptors_for_the_process_itself() -> None:
    for descriptors in (64, 256, 1024, 4096, 20_000, 65_536):
        part = shares(descriptors)
        assert part.http > 0 and part.rpc > 0
        assert part.http + part.rpc <= descriptors - 32
    assert shares(1024).http > 512
    assert raise_limit() == min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_names_that_can_never_match_are_refused() -> None:
    sites("a.example,*.b.example,10.0.0.1", "https://a.example:8443/,null,*").check()
    for bad in (Site(("a:80",)), Site(("http://a",)), Site((), ("a.example",)), Site((), ("https://a/b",))):
        with pytest.raises(ConfigError, match="--allow-"):
            bad.check()
