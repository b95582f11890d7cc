"""Every query of the Grafana dashboard, asked of a real Prometheus that watches a live emulated cluster.

    python -m bench.dashboard --model smollm2-135m -o out

Needs the `prometheus` program (Debian: apt-get install prometheus). Writes dashboard.json (each query, and
the last value of each of its series) and dashboard.png: the series of the panels, drawn by matplotlib, not
by Grafana. Exit code 1 if a query has no data.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from launcher.scrape_targets import FILE_NAME
from tidepipe.v1 import inference_pb2, inference_pb2_grpc
from tidepipe_common.rpc.channel import open_channel

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "tidepipe.json"
SCRAPE_S, RATE = 1, "10s"
READY_S = 30.0
CLIENTS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a panel, and its series: label text -> [(Unix time, value)]."""

    panel: str
    expression: str
    series: dict[str, list[tuple[float, float]]]


async def load(url: str, seconds: float) -> None:
    """Clients that ask one thing after the other, of mixed lengths."""
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

        async def one(number: int) -> None:
            while time.monotonic() < end:
                length = 20 + 37 * number % 200
                body = {"prompt": [5] * length, "max_tokens": 10 + length, "ignore_eos": True}
                (await client.post("/v1/completions", json=body)).raise_for_status()

        await asyncio.gather(*(one(number) for number in range(CLIENTS)))


async def fail(address: str, seconds: float) -> None:
    """Calls that are refused, for the panel of failed calls."""
    end = time.monotonic() + seconds
    async with open_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while time.monotonic() < end:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in stub.Generate(inference_pb2.GenerateRequest(), timeout=5):
                    pass
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def prometheus(targets: Path, folder: Path) -> AsyncIterator[str]:
    """Its URL; ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "prometheus.json"  # JSON is YAML
    jobs = [{"job_name": "tidepipe", "file_sd_configs": [{"files": [str(targets)]}]}]
    config.write_text(
        json.dumps({"global": {"scrape_interval": f"{SCRAPE_S}s"}, "scrape_configs": jobs}), encoding="utf-8"
    )
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(READY_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://{address}/-/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.2)
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


def expressions() -> Iterator[tuple[str, str]]:
    """(panel's title, query), as the dashboard has them."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", RATE)


async def ask(url: str, start: float, end: float) -> list[Query]:
    """All queries over that time. httpx.HTTPStatusError if Prometheus does not understand one."""
    found = []
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        for panel, expression in expressions():
            window: dict[str, Any] = {"query": expression, "start": start, "end": end, "step": SCRAPE_S}
            answer = (await client.get("/api/v1/query_range", params=window)).raise_for_status()
            series = {}
            for result in answer.json()["data"]["result"]:
                labels = ", ".join(f"{name}={value}" for name, value in result["metric"].items())
                numbers = [(at, float(value)) for at, value in result["values"]]
                series[labels] = [(at - start, value) for at, value in numbers if value == value]
            found.append(Query(panel, expression, {name: s for name, s in series.items() if s}))
    return found


def draw(queries: list[Query], file: Path) -> None:
    """The panels as lines over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(query.panel for query in queries))
    figure, grid = plt.subplots((len(panels) + 2) // 3, 3, figsize=(15, 2.6 * ((len(panels) + 2) // 3)))
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, panel in zip(grid.flat, panels, strict=False):
        for query in queries:
            if query.panel == panel:
                for points in query.series.values():
                    axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(panel, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
    figure.suptitle(
        "The dashboard's queries, from Prometheus, over seconds (drawn by matplotlib)", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(file, dpi=90)


async def measure(model: str, seconds: float, folder: Path) -> list[Query]:
    """A cluster of two instances of two stages under load for so long."""
    config = ClusterConfig(
        model=model, stages=2, instances=2, executor="emulated", metrics=True, run_dir=str(folder / "run")
    )
    async with (
        LocalCluster(config) as cluster,
        prometheus(folder / "run" / FILE_NAME, folder) as url,
    ):
        start = time.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(load(f"http://{cluster.http_address}", seconds))
            group.create_task(fail(cluster.grpc_address, seconds))
        return await ask(url, start, time.time())


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queries = asyncio.run(measure(options.model, options.seconds, Path(folder)))
    options.out.mkdir(parents=True, exist_ok=True)
    report = [
        {
            "panel": query.panel,
            "query": query.expression,
            "series": {name: points[-1][1] for name, points in query.series.items()},
        }
        for query in queries
    ]
    (options.out / "dashboard.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(queries, options.out / "dashboard.png")
    for query in queries:
        print(f"{len(query.series):3d} series  {query.panel}: {query.expression}")
    empty = [query for query in queries if not query.series]
    print(f"{len(queries) - len(empty)} of {len(queries)} queries have data")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
