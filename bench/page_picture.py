"""The live page under load, as pictures for the docs: an emulated cluster that loses a worker and grows.

    python -m bench.page_picture --model smollm2-135m --out docs/images

Needs a Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.chromium import BrowserPage, chromium
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import TidePipeError
from tidepipe_common.types.sampling import SamplingParams

PROFILE = "tokens,ms\n1,60\n32,70\n128,110\n256,170\n512,300\n1024,580\n2048,1150\n"
INSTANCES, STAGES, REQUESTS_PER_S = 4, 2, 8.0
WATCHED_S = 30.0


async def picture(model: str, out: Path) -> None:
    """web-page.png, web-page-dark.png and web-page-narrow.png."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile.csv")
        await asyncio.to_thread(profile.write_text, PROFILE)
        config = ClusterConfig(
            model=model, instances=INSTANCES, stages=STAGES, executor="emulated", profile=str(profile),
            policy="padg", routing="padg", ttft_ms=4000, tpot_ms=250, kv_blocks=700,
        )  # fmt: skip
        async with (
            LocalCluster(config) as cluster,
            AsyncClient(cluster.grpc_address) as client,
            _load(client),
            chromium() as page,
        ):
            await page.open(f"http://{cluster.http_address}/ui/", 1280, 1180)
            await page.until("document.querySelectorAll('.lane').length === 8")
            await asyncio.sleep(2)
            worker = next(child for child in cluster.children if child.name.startswith("stage-worker"))
            assert worker.pid is not None
            psutil.Process(worker.pid).kill()
            await asyncio.sleep(WATCHED_S)
            await page.write("#prompt", "Why do tides come twice a day?")
            await page.evaluate("document.querySelector('#most').value = 80")
            await page.click("#send")
            await page.until("document.querySelector('#answer').dataset.state === 'done'", 60)
            await _save(page, out / "web-page.png")
            await page.resize(390, 1500)
            await _save(page, out / "web-page-narrow.png")
            await page.resize(1280, 1180)
            scheme = {"name": "prefers-color-scheme", "value": "dark"}
            await page.call("Emulation.setEmulatedMedia", features=[scheme])
            await _save(page, out / "web-page-dark.png")


async def _save(page: BrowserPage, path: Path) -> None:
    await asyncio.sleep(1.5)  # until all is drawn at its new size
    await asyncio.to_thread(path.write_bytes, await page.picture())


@asynccontextmanager
async def _load(client: AsyncClient) -> AsyncIterator[None]:
    """Requests at random times, until the end of the block."""
    rng = random.Random(1)

    async def one() -> None:
        prompt = [rng.randrange(100, 9000) for _ in range(rng.randrange(100, 900))]
        try:
            await client.generate(prompt, SamplingParams(max_tokens=rng.randrange(20, 120), ignore_eos=True))
        except TidePipeError as error:
            print(f"not answered: {error}")

    async def arrivals() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(one())
                await asyncio.sleep(rng.expovariate(REQUESTS_PER_S))

    task = asyncio.create_task(arrivals())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    asyncio.run(picture(options.model, options.out))


if __name__ == "__main__":
    main()
