"""A headless Chromium, driven over its DevTools protocol: what a person would see of a page, and do to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import websockets

START_S = 30.0
CALL_S = 20.0
POLL_S = 0.1
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers, where it cannot work
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Path of the browser; None if it is not installed (Debian: apt-get install chromium)."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class BrowserPage:
    """One tab. Every call has a deadline."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; RuntimeError if the browser refuses it."""
        number = next(self._numbers)
        await self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(CALL_S):
            while True:
                message = json.loads(await self._connection.recv())
                if message.get("id") == number:
                    if "error" in message:
                        raise RuntimeError(f"{method}: {message['error']['message']}")
                    return dict(message["result"])
                self._listen(message)

    async def open(self, url: str, width: int, height: int, *, dark: bool = False) -> None:
        """Show a page in a window of so many pixels."""
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        await self.call("Page.enable")
        await self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)

    async def resize(self, width: int, height: int) -> None:
        """Make the window another size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression, promises awaited."""
        reply = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"]))
        return reply["result"].get("value")

    async def until(self, script: str, within_s: float = 30.0) -> Any:
        """Wait for a JavaScript expression to be truthy; its value."""
        try:
            async with asyncio.timeout(within_s):
                while not (value := await self.evaluate(script)):  # noqa: ASYNC110 (the browser's state)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {script}\n{self.complaints}\n{text}") from None
        return value

    async def write(self, selector: str, text: str) -> None:
        """Type into a field."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """Press a button."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def picture(self) -> bytes:
        """What the window shows, as PNG."""
        reply = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(reply["data"])

    def _listen(self, message: dict[str, Any]) -> None:
        """Errors of scripts, and what the content security policy refused."""
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            entry = parameters["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[BrowserPage]:
    """A browser with one empty tab, gone with all its processes and files at the end."""
    path = find_chromium()
    if path is None:
        raise RuntimeError("there is no chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path, *FLAGS, f"--user-data-dir={profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        draining: asyncio.Task[bytes] | None = None
        try:
            assert process.stderr is not None
            browser = await _address(process.stderr)
            draining = asyncio.create_task(process.stderr.read())
            target = await _tab(browser)
            async with websockets.connect(target, max_size=None, proxy=None) as connection:
                yield BrowserPage(connection)
            async with websockets.connect(browser, proxy=None) as connection:
                await BrowserPage(connection).call("Browser.close")
            async with asyncio.timeout(CALL_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if draining is not None:
                draining.cancel()


async def _address(stderr: asyncio.StreamReader) -> str:
    async with asyncio.timeout(START_S):
        while line := await stderr.readline():
            if found := re.search(rb"DevTools listening on (ws://\S+)", line):
                return found[1].decode()
    raise RuntimeError("chromium ended before it listened")


async def _tab(browser: str) -> str:
    async with websockets.connect(browser, proxy=None) as connection:
        targets = (await BrowserPage(connection).call("Target.getTargets"))["targetInfos"]
    (tab,) = [target["targetId"] for target in targets if target["type"] == "page"]
    return f"{browser.rpartition('/devtools/')[0]}/devtools/page/{tab}"
