"""The HTTP client of one server: bounded in bytes and time, whatever the server says."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Any

import httpx

from controller.upstream.dialects import error_text
from tidepipe_common.text.json_text import NotJsonError, decode_json
from tidepipe_common.text.text import quoted

CONNECT_S = 5.0
ASK_S = 10.0
"""For a short question: health, names of models."""
SHORT_BYTES = 1024 * 1024
"""An answer to a short question, or an error."""
LINE_BYTES = 1024 * 1024
BYTES_PER_TOKEN = 16
"""A line may repeat all tokens of prompt and output, as numbers."""
FRUITLESS_LINES = 4
"""So many of the longest lines may pass without a new token."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
DONE = b"[DONE]"


class Failure(enum.Enum):
    """Why there is no answer."""

    DOWN = "down"
    """It cannot be reached."""
    BUSY = "busy"
    """It has no room now."""
    DENIED = "denied"
    """It does not take our key, or does not know the model."""
    REFUSED = "refused"
    """The request itself is at fault."""
    BROKEN = "broken"
    """It broke off, fell silent, or said what makes no sense."""


class UpstreamError(Exception):
    """There is no answer, or no more of it. status: of HTTP, 0 if there was none."""

    def __init__(self, failure: Failure, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.failure = failure
        self.status = status


class Allowance:
    """Bytes that may pass until the next progress."""

    def __init__(self, line_bytes: int) -> None:
        self.line_bytes = line_bytes
        self._left = FRUITLESS_LINES * line_bytes

    def spend(self, size: int) -> None:
        """UpstreamError if too many have passed."""
        self._left -= size
        if self._left < 0:
            raise UpstreamError(Failure.BROKEN, "it says very much without a new token")

    def renew(self) -> None:
        """There was progress."""
        self._left = FRUITLESS_LINES * self.line_bytes


class UpstreamClient:
    """Asks one server. Proxies and redirects are not followed, and nothing is unpacked."""

    def __init__(self, url: str, key: str, connections: int) -> None:
        headers = {"accept-encoding": "identity"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=connections + 4, max_keepalive_connections=connections),
            # What waits for an answer has a limit of its own.
            timeout=httpx.Timeout(None, connect=CONNECT_S, pool=CONNECT_S, write=30.0),
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON (None if it is none) of a GET, or with a body of a POST.

        UpstreamError if it cannot be reached.
        """
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(ASK_S), self._http.stream(method, path, json=body) as response:
                raw = await _read(response)
                return response.status_code, _json(raw)
        except TimeoutError as error:
            raise UpstreamError(Failure.DOWN, f"no answer within {ASK_S:g} s") from error
        except httpx.HTTPError as error:
            raise UpstreamError(Failure.DOWN, _words(error)) from error

    async def events(
        self,
        path: str,
        body: Mapping[str, Any],
        allowance: Allowance,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[Any, None]:
        """The events of an answer, as JSON. headers: further ones. UpstreamError: why there are no more."""
        begun = False
        try:
            async with self._http.stream("POST", path, json=body, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, _json(await _read(response)))
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise UpstreamError(Failure.BROKEN, "its answer is packed, which was not asked for")
                begun = True
                buffer = bytearray()
                async for chunk in response.aiter_raw():
                    allowance.spend(len(chunk))
                    buffer += chunk
                    *lines, rest = buffer.split(b"\n")
                    if max(len(rest), *map(len, lines), 0) > allowance.line_bytes:
                        raise UpstreamError(
                            Failure.BROKEN, f"a line of more than {allowance.line_bytes} bytes"
                        )
                    buffer = rest
                    for line in lines:
                        data = line.strip()
                        if not data.startswith(b"data:"):
                            continue  # comments and names of events
                        data = data.removeprefix(b"data:").strip()
                        if data == DONE:
                            return
                        yield decode_json(bytes(data), counted=False)
        except NotJsonError as error:
            raise UpstreamError(Failure.BROKEN, f"an event is {error}") from error
        except httpx.HTTPError as error:
            failure = Failure.BROKEN if begun or not _unreached(error) else Failure.DOWN
            raise UpstreamError(failure, _words(error)) from error

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()


async def _read(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > SHORT_BYTES:
            raise UpstreamError(Failure.BROKEN, f"an answer of more than {SHORT_BYTES} bytes")
    return bytes(raw)


def _json(raw: bytes) -> Any:
    try:
        return decode_json(raw)
    except NotJsonError:
        return None
    except Exception:  # more values than any answer has
        return None


def _refusal(status: int, body: Any) -> UpstreamError:
    error = body.get("error", body.get("message", body)) if isinstance(body, dict) else body
    said = f"HTTP {status}" + (f": {error_text(error)}" if error else "")
    if status in (401, 403, 404):
        return UpstreamError(Failure.DENIED, said, status)
    if status in (429, 503):
        return UpstreamError(Failure.BUSY, said, status)
    if status in (400, 413, 422):
        return UpstreamError(Failure.REFUSED, said, status)
    return UpstreamError(Failure.BROKEN, said, status)


def _unreached(error: httpx.HTTPError) -> bool:
    return isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))


def _words(error: httpx.HTTPError) -> str:
    return quoted(str(error) or type(error).__name__)
