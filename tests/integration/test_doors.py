"""The doors of a router process: what hundreds of open connections, and other sites' pages, can do."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from bench.service_process import started
from launcher.ports import choose_port
from tests.integration.test_router_process import model  # noqa: F401 (a fixture)
from tidepipe_common.security.authority import CA_FILE, files_of, make_certificates
from tidepipe_common.security.principals import ADMIN, INFERENCE, ROUTER

DESCRIPTORS = 1024
HANGING = 996
"""As many as the usual limit had room for."""


@contextlib.contextmanager
def router(model: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, str]]:  # noqa: F811
    """(HTTP, gRPC) of a router process whose limit of descriptors is the usual one, soft and hard."""
    http = f"127.0.0.1:{choose_port('127.0.0.1', 0)}"
    command = ["--listen", "127.0.0.1:0", "--model", str(model), "--http", http, *arguments]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    with started("router", *command, before=limited, **environment) as (_, announced):
        yield http, announced["ready"]


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[tuple[str, str]]:  # noqa: F811
    with router(model, "--allow-origin", "https://chat.example.com", "--allow-host", "*.example.org") as one:
        yield one


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def say(address: str, raw: bytes) -> bytes:
    """All that comes back until the other side hangs up, or nothing comes for two seconds."""
    with connect(address) as client:
        client.sendall(raw)
        client.settimeout(2.0)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while data := client.recv(1 << 16):
                answer += data
            return answer + b"<end>"
        return answer


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * HANGING:
        pytest.skip("the limit of descriptors is too low here for so many clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("kind", ["tls-handshake", "tls-head", "head", "rpc"])
async def test_connections_that_say_nothing_shut_nobody_out(
    model: Path,  # noqa: F811
    tmp_path: Path,
    many_descriptors: None,
    kind: str,
) -> None:
    certs = tmp_path / "certs"
    make_certificates(certs, [], 1)
    cert, key = (str(file) for file in files_of(certs, ROUTER))
    tls = ["--tls-ca", str(certs / CA_FILE), "--tls-cert", cert, "--tls-key", key]
    client_cert = tuple(str(file) for file in files_of(certs, ADMIN))
    context = ssl.create_default_context(cafile=str(certs / CA_FILE))
    context.load_cert_chain(*client_cert)
    secure = kind != "head"
    with router(model, *(tls if secure else [])) as (http, rpc), contextlib.ExitStack() as hanging:
        for number in range(HANGING):
            try:
                one = hanging.enter_context(connect(rpc if kind == "rpc" else http))
                if kind == "tls-head" and number % 8 == 0:
                    one.settimeout(10)
                    one = hanging.enter_context(context.wrap_socket(one, server_hostname="localhost"))
                    one.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
                elif kind == "head":
                    one.sendall(b"POST /v1/completions HTTP/1.1\r\nx-slow: ")
            except OSError:  # it was asked to make room
                continue
        scheme, verify = ("https", context) if secure else ("http", True)
        async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=20) as client:
            answer = await client.get(f"{scheme}://localhost:{http.rpartition(':')[2]}/health")
            assert answer.status_code == 200
            metrics = (await client.get(f"{scheme}://localhost:{http.rpartition(':')[2]}/metrics")).text
        if kind != "rpc":
            given_up = next(
                line for line in metrics.splitlines() if line.startswith("tidepipe_http_connections_given_up")
            )
            assert float(given_up.split()[1]) > 0
        assert await serving(rpc, certs if secure else None)


async def serving(address: str, certs: Path | None) -> bool:
    """True if it answers over gRPC, be it that it is not serving yet."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if certs is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        cert, key = files_of(certs, INFERENCE)
        credentials = grpc.ssl_channel_credentials(
            (certs / CA_FILE).read_bytes(), key.read_bytes(), cert.read_bytes()
        )
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
        return True


BODY = b'{"prompt": "x", "max_tokens": 1}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
NEXT = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 32\r\ncontent-length: 32\r\n\r\n" + BODY,
        HEAD + b"content-length: 32, 32\r\n\r\n" + BODY,
        HEAD + b"content-length: +32\r\n\r\n" + BODY,
        HEAD + b"content-length : 32\r\n\r\n" + BODY,
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"x-a: b\r\n c\r\ncontent-length: 32\r\n\r\n" + BODY,
        HEAD + b"x-a: b\ncontent-length: 32\r\n\r\n" + BODY,
        HEAD + b"x-a: b\rc\r\ncontent-length: 32\r\n\r\n" + BODY,
        b"POST /v1/completions HTTP/1.1\nhost: localhost\ncontent-length: 32\n\n" + BODY,
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: other\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health?q=" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabcdeXX0\r\n\r\n",
    ],
)
def test_a_request_whose_end_can_be_read_in_two_ways_ends_its_connection(
    plain: tuple[str, str], head: bytes
) -> None:
    answer = say(plain[0], head + NEXT)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.1 501 ")) or answer == b""
    assert answer.count(b"HTTP/1.1 ") <= 1 and b'"ok"' not in answer
    assert answer.endswith(b"<end>") or answer == b""


LOCAL = "http://localhost:{port}"
EVIL = {"origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/models", {}, 200),
        ("GET", "/v1/models", {"host": "127.0.0.1"}, 200),
        ("GET", "/v1/models", {"host": "[::1]:8080"}, 200),
        ("GET", "/v1/models", {"host": "a.example.org"}, 200),
        ("GET", "/v1/models", {"host": "evil.example"}, 403),
        ("GET", "/v1/models", {"host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/v1/models", {"host": "10.1.2.3"}, 403),
        ("GET", "/metrics", {"host": "evil.example"}, 403),
        ("GET", "/ui/", {"host": "evil.example"}, 403),
        ("GET", "/v1/models", EVIL, 403),
        ("GET", "/v1/models", {"origin": "null"}, 403),
        ("GET", "/v1/models", {"origin": "http://localhost:1"}, 403),
        ("GET", "/v1/models", {"origin": LOCAL}, 200),
        ("GET", "/v1/models", {"sec-fetch-site": "same-origin"}, 200),
        ("GET", "/v1/models", {"sec-fetch-site": "none"}, 200),
        ("GET", "/admin/events", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/v1/models", {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/ui/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                         "sec-fetch-dest": "document"}, 200),
        ("GET", "/ui/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                         "sec-fetch-dest": "iframe"}, 403),
        ("POST", "/v1/completions", {**EVIL, "content-type": "text/plain"}, 403),
        ("POST", "/v1/files", {**EVIL, "content-type": "multipart/form-data; boundary=x"}, 403),
        ("POST", "/v1/completions", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/chat/completions", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/completions", {}, 415),
        ("POST", "/v1/completions", {"content-type": "application/json; charset=utf-16"}, 415),
        ("POST", "/v1/completions", {"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ("OPTIONS", "/v1/completions", EVIL, 403),
    ],
)  # fmt: skip
async def test_pages_of_other_sites_are_turned_away(
    plain: tuple[str, str], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    port = plain[0].rpartition(":")[2]
    headers = {name: value.format(port=port) for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=LOCAL.format(port=port), trust_env=False) as client:
        answer = await client.request(
            method, path, headers=headers, content=b"{}" if method == "POST" else None
        )
    assert answer.status_code == status, answer.text
    if status == 403:
        assert "--allow-" in answer.json()["error"]["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_allowed_origin_gets_cors(plain: tuple[str, str]) -> None:
    origin = {"origin": "https://chat.example.com"}
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with httpx.AsyncClient(base_url=f"http://{plain[0]}", trust_env=False) as client:
        preflight = await client.options("/v1/chat/completions", headers={**origin, **asked})
        assert preflight.status_code == 200, preflight.text
        assert preflight.headers["access-control-allow-origin"] == origin["origin"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        answer = await client.get("/v1/models", headers={**origin, "sec-fetch-site": "cross-site"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin["origin"]


def test_a_router_with_few_descriptors_says_so(plain: tuple[str, str]) -> None:
    began = time.monotonic()
    answer = say(plain[0], b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").decode()
    limit = next(line for line in answer.splitlines() if line.startswith("tidepipe_http_max_connections "))
    assert 256 < float(limit.split()[1]) < DESCRIPTORS
    assert time.monotonic() - began < 60


def form(*parts: tuple[str, bytes], more_headers: bytes = b"") -> bytes:
    """A multipart body whose boundary is x."""
    pieces = [
        b'--x\r\ncontent-disposition: form-data; name="%s"%s\r\n%s\r\n%s\r\n'
        % (name.encode(), b'; filename="f"' if name == "file" else b"", more_headers, content)
        for name, content in parts
    ]
    return b"".join(pieces) + b"--x--\r\n"


GOOD_FORM = (("purpose", b"batch"), ("file", b"{}"))


async def test_files_have_a_quota_and_an_end_and_forms_are_bounded(model: Path, tmp_path: Path) -> None:  # noqa: F811
    with router(model, "--data-dir", str(tmp_path / "data"), "--files-max-bytes", "2000000") as (http, _):
        async with httpx.AsyncClient(base_url=f"http://{http}", trust_env=False, timeout=30) as client:

            async def upload(content: bytes) -> httpx.Response:
                headers = {"content-type": "multipart/form-data; boundary=x"}
                return await client.post("/v1/files", content=content, headers=headers)

            for bad in (
                form(*((f"n{number}", b"") for number in range(30_000))),
                form(*GOOD_FORM, more_headers=b"x-long: " + b"y" * 200_000 + b"\r\n"),
                form(*GOOD_FORM, more_headers=b"x: y\r\n" * 50_000),
                form(("purpose", b"x" * 1_500_000), ("file", b"")),
                form(("purpose", b"x" * 100_000), GOOD_FORM[1]),
                form(*GOOD_FORM, ("file", b"again")),
                form(*GOOD_FORM)[:-9],
                form(*GOOD_FORM, ("expires_after[anchor]", b"created_at")),
            ):
                answer = await upload(bad)
                assert answer.status_code in (400, 413), (bad[:99], answer.text)
                assert 0 < len(answer.json()["error"]["message"]) < 500
            assert (await client.get("/v1/files")).json()["data"] == []

            ends = (("expires_after[anchor]", b"created_at"), ("expires_after[seconds]", b"3600"))
            stored = (await upload(form(*GOOD_FORM, *ends))).json()
            assert stored["expires_at"] - stored["created_at"] == 3600
            large = (await upload(form(("purpose", b"batch"), ("file", b"x" * 1_500_000)))).json()
            assert large["expires_at"] - large["created_at"] == 30 * 24 * 3600
            again = await upload(form(("purpose", b"batch"), ("file", b"x" * 1_500_000)))
            assert again.status_code == 507 and "delete files" in again.json()["error"]["message"]
            assert (await client.delete(f"/v1/files/{large['id']}")).status_code == 200
            assert (await upload(form(("purpose", b"batch"), ("file", b"x" * 1_500_000)))).status_code == 200


async def test_no_message_grows_once_it_is_in(plain: tuple[str, str]) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(plain[1], compression=grpc.Compression.Gzip) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="x" * 10_000_000), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
