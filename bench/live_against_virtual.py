"""Policies live on emulated workers against the same in virtual time: what users see must be the same.

    python -m bench.live_against_virtual --profile L20_LLAMA2_13B.csv -o docs/images/live-against-virtual

The same arrivals (Poisson, lengths around ShareGPT's) go through a cluster of real processes whose workers
sleep, and through the routers' and controllers' own objects in virtual time, with the settings, the split of
layers, and the time between steps that the live ones have: what their controllers measured meanwhile, unless
--dispatch-ms says otherwise. Each rate's policies run in turn, --rounds times; shown are medians.
Ratios are live over virtual. Run it on a machine with nothing else to do: its load is written beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.live_emulated import Arrival, arrivals, ask
from controller.scheduler.policies.catalog import ROUTING, make_setup
from controller.scheduler.split import stage_layers
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.scheduler.routing_scheduler import OverallConfig
from router.scheduler.slo import SloTarget
from simulator.cluster import ClusterRules, VirtualCluster
from simulator.cluster_spec import ClusterSpec
from simulator.exact_instance import ExactInstance, ExactRules
from simulator.job import Job
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.model_source import resolve_model
from tidepipe_common.settings.defaults import USUAL_ROUTING
from tidepipe_common.types.token_mix import TokenMix

AIM = 0.05
"""How far the median TPOT, and attainment, may be from virtual time."""
TIMES = ("tpot_p50_ms", "tpot_p90_ms", "ttft_p50_ms")
JUDGED = ("tpot_p50_ms", "attainment")


@dataclass(frozen=True, slots=True)
class Figures:
    """What the clients saw."""

    tpot_p50_ms: float
    tpot_p90_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    attainment: float
    dispatch_ms: float = 0.0


def figures(ttfts: Sequence[float], tpots: Sequence[float], slo: SloTarget, dispatch_s: float) -> Figures:
    """Of requests that all came to their end; seconds."""
    ttft, tpot = np.array(ttfts), np.array(tpots)
    p50, p90 = 1000 * np.percentile(tpot, (50, 90))
    first50, first90 = 1000 * np.percentile(ttft, (50, 90))
    met = np.mean((ttft <= slo.ttft_s) & (tpot <= slo.tpot_s))
    return Figures(float(p50), float(p90), float(first50), float(first90), float(met), 1000 * dispatch_s)


class Setting:
    """Both worlds' cluster, from the same options."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._slo = SloTarget(options.ttft_ms / 1000, options.tpot_ms / 1000)
        shape = read_shape(str(resolve_model(options.model) / "config.json"))
        self._split = tuple(end - begin for begin, end in stage_layers(shape, options.stages, TokenMix()))
        profile = read_profile(options.profile) if options.profile else None
        self._spec = ClusterSpec(
            shape, hardware(options.hardware), options.instances, stages=options.stages, profile=profile
        )

    def virtual(self, policy: str, load: Sequence[Arrival], dispatch_s: float) -> Figures:
        """In virtual time."""
        spec, slo = replace(self._spec, dispatch_s=dispatch_s), self._slo
        cost = spec.latency()
        rules = ExactRules(policy, {}, self._split)
        routing = OverallConfig(
            policy=ROUTING.get(policy, USUAL_ROUTING), bounds=spec.one_group, max_pending=len(load) + 1
        )
        cluster = VirtualCluster(
            ClusterRules(routing),
            lambda name, born: ExactInstance(rules, spec, born),
            cost,
            stages=spec.stages,
            context=spec.context,
            step_tokens=make_setup(policy, {}, cost, spec.hardware.name).prefill_tokens,
        )
        jobs = [Job(i, one.prompt, one.output, one.at, slo, one.output) for i, one in enumerate(load)]
        cluster.start(spec.instances)
        cluster.run(jobs)
        return figures(
            [job.ttft(switch_wait=False) for job in jobs],
            [job.tpot(switch_wait=False) for job in jobs],
            slo,
            dispatch_s,
        )

    async def live(self, policy: str, load: Sequence[Arrival]) -> Figures:
        """Real processes, emulated devices."""
        options, slo = self._options, self._slo
        config = ClusterConfig(
            model=options.model,
            executor="emulated",
            hardware=options.hardware,
            profile=str(options.profile) if options.profile else None,
            instances=options.instances,
            stages=options.stages,
            policy=policy,
            ttft_ms=options.ttft_ms,
            tpot_ms=options.tpot_ms,
            log_level="error",
        )
        async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=120) as client:
            start = time.monotonic() + 0.5
            found = await asyncio.gather(*(ask(client, one, start, (slo.ttft_s, slo.tpot_s)) for one in load))
            told = [one.status.dispatch_s for one in (await client.status()).instances if one.status]
        if failed := [one.error for one in found if one.error]:
            raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
        return figures(
            [one.ttft_s for one in found], [one.tpot_s for one in found], slo, statistics.fmean(told)
        )


def median(runs: Sequence[Figures]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(asdict(run)[name] for run in runs) for name in asdict(runs[0])}


def row(rate: float, policy: str, virtual: Mapping[str, float], live: Mapping[str, float]) -> dict[str, Any]:
    """One line of the table."""
    ratio = {name: live[name] / virtual[name] if virtual[name] else 1.0 for name in virtual}
    return {"rate": rate, "policy": policy, "virtual": dict(virtual), "live": dict(live), "ratio": ratio,
            "within": all(abs(ratio[name] - 1) <= AIM for name in JUDGED)}  # fmt: skip


def show(one: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    live, virtual, ratio = one["live"], one["virtual"], one["ratio"]
    cells = [f"{live[name]:.1f} / {virtual[name]:.1f} = {ratio[name]:.3f}" for name in TIMES]
    cells.insert(0, f"{virtual['dispatch_ms']:.2f} ms")
    cells.append(f"{live['attainment']:.3f} / {virtual['attainment']:.3f} = {ratio['attainment']:.3f}")
    return f"| {one['rate']:g} | {one['policy']} | {' | '.join(cells)} |"


def write_rows(options: argparse.Namespace, rows: Sequence[Any]) -> None:
    """JSON at `options.output`, with the options; of paths the names."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    shown = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()}
    told = {"options": shown, "rows": rows}
    options.output.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """A Markdown table, and all runs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="shape and tokenizer")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--profile", type=Path, default=None)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--rates", nargs="+", type=float, default=[2.0, 8.0], help="requests per second")
    parser.add_argument("--policies", nargs="+", default=["auto", "padg", "hybrid", "separate"])
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ttft-ms", type=float, default=5000.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--dispatch-ms", type=float, default=None, help="in virtual time; default: as measured live"
    )
    parser.add_argument("-o", "--output", type=Path, default=None, help="path without ending")
    options = parser.parse_args()
    setting = Setting(options)
    rows: list[dict[str, Any]] = []
    print("| rate /s | policy | between steps | TPOT p50, ms | TPOT p90, ms | TTFT p50, ms | attainment |")
    print("|---|---|---|---|---|---|---|")
    for rate in options.rates:
        load = arrivals(rate, options.seconds, options.seed)
        runs: dict[str, list[Figures]] = {policy: [] for policy in options.policies}
        loads: dict[str, list[float]] = {policy: [] for policy in options.policies}
        for _ in range(options.rounds):
            for policy in options.policies:
                runs[policy].append(asyncio.run(setting.live(policy, load)))
                loads[policy].append(os.getloadavg()[0])
        for policy in options.policies:
            live = median(runs[policy])
            way_ms = live["dispatch_ms"] if options.dispatch_ms is None else options.dispatch_ms
            rows.append(row(rate, policy, asdict(setting.virtual(policy, load, way_ms / 1000)), live))
            rows[-1] |= {"rounds": [asdict(run) for run in runs[policy]], "load_average": loads[policy]}
            print(show(rows[-1]), flush=True)
    apart = [f"{one['policy']} at {one['rate']:g}/s" for one in rows if not one["within"]]
    print(f"\nlive / virtual; further apart than {AIM:.0%}: {', '.join(apart) or 'none'}")
    if options.output is not None:
        write_rows(options, rows)


if __name__ == "__main__":
    main()
