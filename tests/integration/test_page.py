"""The live page: its files, who may read its data, and what a browser shows of a real emulated cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.api.dashboard.feed import MAX_WATCHERS
from router.api.dashboard.routes import page_routes
from router.api.http.access import KeyGate
from tests.chromium import chromium, find_chromium
from tests.fakes.client import listen, request
from tests.fakes.controller import fake_controller
from tests.fakes.router import RunningRouter, running_router
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.types.sampling import SamplingParams

EVENTS = "/admin/events"
PROFILE = "tokens,ms\n1,20\n64,40\n512,160\n2048,600\n"
MARKUP = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no browser: apt-get install chromium")


@pytest.fixture
async def router() -> AsyncIterator[RunningRouter]:
    async with running_router() as one:
        yield one


def client_of(router: RunningRouter) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{router.http}", timeout=10, trust_env=False)


async def states(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    assert response.status_code == 200, await response.aread()
    async for line in response.aiter_lines():
        if line:
            yield json.loads(line.removeprefix("data: "))


async def test_the_files_are_served_strictly_and_refer_to_nothing_elsewhere(router: RunningRouter) -> None:
    async with client_of(router) as http:
        assert (await http.get("/ui")).headers["location"] == "ui/"
        page = await http.get("/ui/")
        names = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))
        assert "main.js" in names
        seen: set[str] = set()
        while names - seen:
            name = (names - seen).pop()
            seen.add(name)
            file = await http.get(f"/ui/{name}")
            assert file.status_code == 200, name
            policy = file.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            names |= set(re.findall(r'from "\./([^"]+)"', file.text))
        assert (await http.get("/ui/..%2froutes.py")).status_code == 404
        assert (await http.get("/ui/routes.py")).status_code == 404


async def test_news_follow_what_happens(router: RunningRouter) -> None:
    async with client_of(router) as http, http.stream("GET", EVENTS) as response:
        news = states(response)
        first = await anext(news)
        assert first["fresh"] and first["instances"] == first["macros"] == []
        async with fake_controller() as controller:
            await controller.register(router.address)
            async with asyncio.timeout(10):
                while not (state := await anext(news))["instances"]:
                    pass
            assert state["instances"][0]["id"] == controller.instance_id
            texts = [text for _, _, text in state["happenings"]]
            assert any(text.startswith(f"{controller.instance_id} registered") for text in texts)
            await listen(router, request("hello", max_tokens=5))
            async with asyncio.timeout(10):
                while (state := await anext(news))["requests"]["finished"] != 1:
                    assert "fresh" not in state
            assert state["requests"]["generated_tokens"] == 5
            assert (state["promises"]["ttft"]["met"], state["promises"]["ttft"]["count"]) == (1, 1)


async def test_watchers_are_bounded_and_end_with_the_router() -> None:
    async with running_router() as router, client_of(router) as http:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=http.base_url, timeout=10, trust_env=False, limits=limits) as many,
            contextlib.AsyncExitStack() as stack,
        ):
            # At once: a stream begins with the next news, which come twice a second.
            watching = await asyncio.gather(
                *(stack.enter_async_context(many.stream("GET", EVENTS)) for _ in range(MAX_WATCHERS))
            )
            assert {response.status_code for response in watching} == {200}
            refused = await many.get(EVENTS)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            router.lifecycle.stopping.set()
            async with asyncio.timeout(10):
                assert b"data: " in await watching[-1].aread()


async def test_the_page_is_open_and_its_data_needs_an_admin(router: RunningRouter, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    _, user = store.add("user", ["inference"])
    _, operator = store.add("operator", ["admin"])
    app = Starlette(routes=page_routes(router.service.feed))

    async def status(application: Any, path: str, key: str = "", **state: object) -> int:
        statuses: list[int] = []
        begun = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            elif statuses:
                begun.set()

        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
        async with asyncio.timeout(10):
            await application({**scope, "state": state}, receive, send)
        return statuses[0]

    gate = KeyGate(app, KeyAccess(store))
    assert await status(gate, "/ui/") == await status(gate, "/ui/main.js") == 200
    assert await status(gate, EVENTS) == 401
    assert await status(gate, EVENTS, user) == 403
    assert await status(gate, EVENTS, operator) == 200
    assert await status(app, EVENTS, principals=frozenset({"client/inference"})) == 403
    assert await status(app, EVENTS, principals=frozenset({"client/admin"})) == 200


@pytest.mark.model
@pytest.mark.timeout(150)
@needs_browser
async def test_a_browser_shows_the_stages_and_streams_an_answer(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "profile.csv").write_text(PROFILE)
    config = ClusterConfig(
        model=str(model_path), stages=2, instances=2, executor="emulated", policy="padg", routing="padg",
        profile=str(tmp_path / "profile.csv"),
    )  # fmt: skip
    colours = """["44,111,209", "227,154,45"].every((colour) =>
        [...document.querySelectorAll(".block:not([data-id=router]) canvas")].some((lanes) => {
            const {data} = lanes.getContext("2d").getImageData(0, 12, lanes.width, 20);
            for (let i = 0; i < data.length; i += 4) {
                if ([data[i], data[i + 1], data[i + 2]].join() === colour) return true;
            }
            return false;
        }))"""
    long = [[100 + number] * 1500 for number in range(6)]
    async with (
        LocalCluster(config) as cluster,
        AsyncClient(cluster.grpc_address) as client,
        chromium() as page,
    ):
        await page.open(f"http://{cluster.http_address}/", 1280, 900)
        await page.until("document.querySelector('#link')?.dataset.state === 'live'")
        await page.until("document.querySelectorAll('.lane').length === 4")
        done = [one async for one in client.generate_batch(long, SamplingParams(max_tokens=20))]
        assert all(one.error is None for one in done)
        await page.until(colours)
        both = "one.dataset.prefill > 0.001 && one.dataset.decode > 0.001"
        lanes = f"[...document.querySelectorAll('.lane')].filter((one) => {both})"
        await page.until(f"{lanes}.length >= 2")
        await page.write("#prompt", "Why do tides come twice a day?")
        await page.evaluate("document.querySelector('#most').value = 2000")
        await page.click("#send")
        await page.until("document.querySelector('#answer').dataset.state === 'streaming'")
        grown = await page.evaluate("document.querySelector('#answer').textContent.length")
        await page.until(f"document.querySelector('#answer').textContent.length > {grown}")
        await page.until("document.querySelectorAll('.member[data-turn=true]').length === 1")
        await page.until("document.querySelector('.switches summary').click() || true")
        await page.until("document.querySelector('.switches li')?.textContent.includes('→')")
        await page.click("#send")
        await page.until("document.querySelector('#answer').dataset.state === 'stopped'")
        async with asyncio.timeout(10):
            while (await client.status()).running:  # noqa: ASYNC110 (another process's state)
                await asyncio.sleep(0.05)
        shown = await page.evaluate("document.querySelector('#model').textContent")
        assert shown == f"{model_path.name} at http://{cluster.http_address}/v1"
        cut = """[...document.querySelectorAll("body *:not(.unseen)")].filter((one) =>
            getComputedStyle(one).overflowX === "hidden" && one.textContent.trim()
            && one.scrollWidth > one.clientWidth).map((one) => one.className)"""
        for width in (1280, 390):
            await page.resize(width, 900)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(cut) == []
        assert page.complaints == []


@needs_browser
async def test_names_are_shown_as_text_and_a_lost_router_is_noticed() -> None:
    async with chromium() as page:
        async with running_router() as router, fake_controller(instance_id=MARKUP) as controller:
            await page.open(f"http://{router.http}/ui/", 400, 800, dark=True)
            await page.until(
                "document.querySelector('#macros .empty')?.textContent.includes('No instance yet')"
            )
            await controller.register(router.address)
            await page.until("document.querySelectorAll('.block').length === 2")
            shown = await page.evaluate("document.querySelectorAll('.block h3')[1].textContent")
            assert shown == MARKUP
            assert await page.evaluate("document.title") == "TidePipe"
            assert not await page.evaluate("document.querySelector('main img, main script')")
        await page.until("document.querySelector('#link')?.dataset.state === 'lost'")
        assert "Trying again" in await page.evaluate("document.querySelector('#notice').textContent")
