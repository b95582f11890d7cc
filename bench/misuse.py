"""What one careless or hostile client costs all others.

    python -m bench.misuse --model smollm2-135m -o results/ [--seconds 10] [--only NAME ...]

A live cluster of two stages answers eight canary streams (four over HTTP, four over gRPC) and a batch, while
each kind of misuse comes for some seconds (`bench.misuse_inputs`). A row: whether all canaries' answers are
those of the quiet run, how long they took beside it, how large each process became, and how long each event
loop was deaf: by its own measure (`bench.misuse_lag`), and as the longest answer to a health check, one every
50 ms, less the median of the quiet run.
Writes misuse.json, misuse.md and misuse.png.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.misuse_inputs import ENDLESS, KINDS
from bench.misuse_lag import read_lags
from launcher.child import Child
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.model_source import resolve_model
from tidepipe_common.rpc.channel import is_serving, open_channel

STREAMS = 8
LINES = 8
ANSWER_TOKENS = 220
LINE_TOKENS = 60
POLL_S = 0.05
BEGIN_S = 0.5
"""The misuse begins so long before the canaries."""
MIB = 2**20
PAUSED = "a stage worker that stands still"
REST_S = 3.0


@dataclass(slots=True)
class Row:
    """One kind of misuse. Of each process: deaf_ms, lag_ms, as others and as it itself saw it; peak_mib.

    computing_ms: the longest lag since its start that was its own doing, and not the machine's.

    ratio: canaries' time over the quiet run's.
    """

    misuse: str
    seconds: float
    ratio: float
    unchanged: int
    answers: int
    deaf_ms: dict[str, float] = field(default_factory=dict)
    lag_ms: dict[str, float] = field(default_factory=dict)
    computing_ms: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


class Watch:
    """Asks every process for its health again and again, and looks at its memory."""

    def __init__(self, children: list[Child]) -> None:
        self._children = children
        self.slowest: dict[str, float] = {}
        self.times: list[float] = []
        self.peak: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._ask(child) for child in self._children), self._weigh())

    async def _ask(self, child: Child) -> None:
        async with open_channel(child.address) as channel:
            await is_serving(channel)
            while True:
                begin = time.monotonic()
                # A channel that is being made again is not a deaf loop: what is not answered is not counted.
                answered = await is_serving(channel, 30.0)
                took = time.monotonic() - begin
                if answered:
                    self.times.append(took)
                    self.slowest[child.name] = max(self.slowest.get(child.name, 0.0), took)
                await asyncio.sleep(POLL_S)

    async def _weigh(self) -> None:
        while True:
            for child in self._children:
                with contextlib.suppress(psutil.Error):
                    family = psutil.Process(child.pid)
                    sizes = [one.memory_info().rss for one in (family, *family.children(recursive=True))]
                    self.peak[child.name] = max(self.peak.get(child.name, 0), sum(sizes) // MIB)
            await asyncio.sleep(0.25)


def endless_copy(model: Path, folder: Path) -> Path:
    """A checkpoint without an end token, as some people have them: a structure can never end there.

    A folder with the same weights, in which no file names an end.
    """
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json" and path.name != "tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            for name in ("eos_token_id", "eos_token"):
                if isinstance(values, dict) and name in values:
                    values[name] = None
            (folder / path.name).write_text(json.dumps(values), encoding="utf-8")
        else:
            (folder / path.name).symlink_to(path.resolve())
    return folder


async def canaries(cluster: LocalCluster) -> list[str]:
    """The answers of all innocent requests."""
    http = f"http://{cluster.http_address}"
    async with AsyncClient(cluster.grpc_address) as client, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_by_http(http, i) if i % 2 else _by_grpc(client, i)) for i in range(STREAMS)
        ]
        batch = group.create_task(_batch(http))
    return [*(task.result() for task in tasks), *batch.result()]


def _prompt(number: int) -> list[int]:
    return [100 + number, *range(200, 220 + number)]


async def _by_grpc(client: AsyncClient, number: int) -> str:
    tokens: list[int] = []
    async with client.stream(
        _prompt(number), temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True
    ) as stream:
        async for event in stream:
            tokens += event.token_ids
    return " ".join(map(str, tokens))


async def _by_http(http: str, number: int) -> str:
    body = {
        "prompt": _prompt(number), "temperature": 0, "max_tokens": ANSWER_TOKENS, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    pieces: list[str] = []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=300) as client,
        client.stream("POST", f"{http}/v1/completions", json=body) as stream,
    ):
        if stream.status_code != 200:
            return f"{stream.status_code} {(await stream.aread()).decode()[:200]}"
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                pieces.append(event["choices"][0]["text"] if event.get("choices") else json.dumps(event))
    return "".join(pieces)


async def _batch(http: str) -> list[str]:
    body = {"temperature": 0, "max_tokens": LINE_TOKENS, "ignore_eos": True}
    lines = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": "/v1/completions",
            "body": {**body, "prompt": _prompt(20 + i)},
        }
        for i in range(LINES)
    ]
    files = {"file": ("in.jsonl", "\n".join(map(json.dumps, lines)).encode())}
    async with httpx.AsyncClient(base_url=http, trust_env=False, timeout=300) as client:
        upload = await client.post("/v1/files", files=files, data={"purpose": "batch"})
        upload.raise_for_status()
        job = {
            "input_file_id": upload.json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        batch = (await client.post("/v1/batches", json=job)).json()
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.1)
            batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
        if not batch.get("output_file_id"):
            return [json.dumps(batch.get("errors"))] * LINES
        content = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    answers = {line["custom_id"]: line for line in map(json.loads, content.splitlines())}
    return [
        answers[str(i)]["response"]["body"]["choices"][0]["text"] if str(i) in answers else "no line"
        for i in range(LINES)
    ]


@contextlib.asynccontextmanager
async def watched(cluster: LocalCluster) -> AsyncIterator[Watch]:
    """Watch all processes inside."""
    watch = Watch(cluster.children)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])


async def inflict(name: str, cluster: LocalCluster, seconds: float) -> dict[str, Any]:
    """Let one kind of misuse come; what it was told."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.misuse_inputs", name),
        *(cluster.http_address, cluster.grpc_address, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), seconds + 90)
        return dict(json.loads(said)) if said else {"failed": process.returncode}
    except TimeoutError:
        return {"failed": "it did not come to an end"}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stand_still(_: str, cluster: LocalCluster, seconds: float) -> dict[str, Any]:
    """A stage worker that is there, and does nothing."""
    child = next(child for child in cluster.children if child.name.startswith("stage-worker"))
    pid = child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return {"stopped": child.name}


Infliction = Callable[[str, LocalCluster, float], Coroutine[Any, Any, dict[str, Any]]]


async def row(
    name: str, cluster: LocalCluster, seconds: float, quiet: tuple[float, float, list[str]], do: Infliction
) -> Row:
    """One kind of misuse beside the canaries. quiet: seconds, median health check and answers without it."""
    restarts = {child.name: child.restart_count for child in cluster.children}
    lags = await read_lags(cluster.children)
    async with watched(cluster) as watch:
        trouble = asyncio.create_task(do(name, cluster, seconds))
        await asyncio.sleep(BEGIN_S)
        begin = time.monotonic()
        try:
            answers = await asyncio.wait_for(canaries(cluster), 300)
        except Exception as error:
            answers = [repr(error)]
        took = time.monotonic() - begin
        told = await trouble
    after = await read_lags(cluster.children)
    heard = {name: lag.since(lags[name]) for name, lag in after.items()}
    normal, health, expected = quiet
    result = Row(
        name, round(took, 2), round(took / normal, 2),
        sum(a == b for a, b in zip(answers, expected, strict=False)), len(expected),
        {key: round(1000 * max(0.0, value - health), 1) for key, value in watch.slowest.items()},
        {key: round(1000 * value, 1) for key, value in heard.items()},
        {key: round(1000 * lag.computing, 1) for key, lag in after.items()},
        watch.peak,
        {c.name: n for c in cluster.children if (n := c.restart_count - restarts.get(c.name, 0))},
        told,
    )  # fmt: skip
    print(json.dumps(asdict(result)), flush=True)
    await asyncio.sleep(REST_S)
    return result


async def run(options: argparse.Namespace) -> list[Row]:
    """All rows."""
    usual: dict[str, Infliction] = {**dict.fromkeys(KINDS, inflict), PAUSED: stand_still}
    with tempfile.TemporaryDirectory() as folder:
        rows = await on_one(options, options.model, f"{folder}/data", {"none": _nothing, **usual})
        if _wanted(ENDLESS, options):
            model = endless_copy(resolve_model(options.model), Path(folder) / "endless")
            rows += await on_one(options, str(model), f"{folder}/data2", {ENDLESS: inflict})
    return rows


async def on_one(
    options: argparse.Namespace, model: str, data_dir: str, kinds: dict[str, Infliction]
) -> list[Row]:
    """Rows on a cluster of their own."""
    config = ClusterConfig(model=model, stages=2, dtype=options.dtype, data_dir=data_dir, metrics=True)
    async with LocalCluster(config) as cluster:
        await canaries(cluster)  # kernels and caches are warm
        times, checks, answers = [], [], []
        for _ in range(3):
            async with watched(cluster) as watch:
                begin = time.monotonic()
                answers = await canaries(cluster)
                times.append(time.monotonic() - begin)
                checks += watch.times
        quiet = (statistics.median(times), statistics.median(checks), answers)
        print(json.dumps({"quiet_s": times, "health_ms": round(1000 * quiet[1], 2)}), flush=True)
        return [
            await row(name, cluster, options.seconds, quiet, do)
            for name, do in kinds.items()
            if _wanted(name, options)
        ]


def _wanted(name: str, options: argparse.Namespace) -> bool:
    return not options.only or name == "none" or any(part in name for part in options.only)


async def _nothing(*_: object) -> dict[str, Any]:
    return {}


def markdown(rows: list[Row]) -> str:
    """The table for the docs."""
    lines = [
        "| misuse | answers unchanged | canaries' time | router's loop late, ms | others' | "
        "router deaf, ms | others | router MiB | controller MiB | stages MiB | restarts |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        others = [value for name, value in one.deaf_ms.items() if name != "router"]
        late = [value for name, value in one.lag_ms.items() if name != "router"]
        stages = [value for name, value in one.peak_mib.items() if name.startswith("stage-worker")]
        controller = [value for name, value in one.peak_mib.items() if name.startswith("controller")]
        restarts = ", ".join(f"{name} {count}" for name, count in one.restarts.items()) or "none"
        lines.append(
            f"| {one.misuse} | {one.unchanged} of {one.answers} | {one.ratio:.2f} | "
            f"{one.lag_ms.get('router', 0):.0f} | {max(late, default=0):.0f} | "
            f"{one.deaf_ms.get('router', 0):.0f} | {max(others, default=0):.0f} | "
            f"{one.peak_mib.get('router', 0)} | {max(controller, default=0)} | "
            f"{', '.join(map(str, stages))} | {restarts} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Canaries' time beside the quiet run's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names, ratios = [one.misuse for one in rows], [one.ratio for one in rows]
    bars = axes.barh(names, ratios, color=["C0" if one.unchanged == one.answers else "C3" for one in rows])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.5, color="grey", linestyle="--", label="1.5 x the quiet run")
    axes.set_xlabel("time of the canaries over that of the quiet run")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32", help="in float32 recomputation changes no token")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(one) for one in rows], indent=1)
    (options.output / "misuse.json").write_text(text, encoding="utf-8")
    (options.output / "misuse.md").write_text(markdown(rows), encoding="utf-8")
    picture(rows, options.output / "misuse.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
