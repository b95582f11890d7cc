"""Roles by the link between instances: live on emulated workers whose link is shaped, and in virtual time.

    python -m bench.live_roles --shapes codellama-34b llama-30b --gbit 10

The same arrivals go through a cluster of real processes whose workers sleep, and whose KV blocks take their
time on each instance's way out and in, and through the routers' and controllers' own objects in virtual time.
Shown are shares of prefill at the end, how many sequences were handed over, what users saw, and how long
those that moved stood still: in virtual time from their leaving to where their blocks are, live (of all) the
longest time between two of the first messages. --virtual
leaves the live runs out; more than one --gbit shows where shares begin to move.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.live_against_virtual import Figures, figures, write_rows
from bench.live_emulated import Arrival, arrivals, ask
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.scheduler.slo import SloTarget
from simulator.cluster_spec import REACHED, ClusterSpec
from simulator.job import Job
from simulator.systems import cluster_of, scan
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.model_source import resolve_model


def model_folder(name: str, tokenizer: str, folder: Path) -> Path:
    """A model of that shape, for workers that compute nothing: another one's tokenizer and weights."""
    source, shape = resolve_model(tokenizer), SHAPES[name]
    made = folder / name
    made.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (made / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def virtual(options: argparse.Namespace, model: Path, gbit: float, load: Sequence[Arrival]) -> dict[str, Any]:
    """In virtual time, with the controllers' own scheduler; each instance is a node."""
    slo = SloTarget(options.ttft_ms / 1000, options.tpot_ms / 1000)
    spec = ClusterSpec(
        read_shape(str(model / "config.json")),
        hardware(options.hardware),
        options.instances,
        stages=options.stages,
        network_gb_s=gbit / 8,
        node_devices=options.stages,
    )
    system = options.system
    if system == "roles" and options.prefill_instances:
        system = f"roles:{options.prefill_instances}"
    jobs = [Job(i, one.prompt, one.output, one.at, slo, one.output) for i, one in enumerate(load)]
    cluster = cluster_of(system, scan(system, spec)[0], spec, len(jobs), exact=True)
    cluster.run(jobs)
    seen = figures(
        [job.ttft(switch_wait=False) for job in jobs],
        [job.tpot(switch_wait=False) for job in jobs],
        slo,
        spec.dispatch_s,
    )
    shares = dict.fromkeys(cluster.instances, 0.5)
    shares.update((move.instance_id, move.role.share) for _, move in cluster.log.roles)
    told = _told(
        seen,
        shares,
        cluster.log.handed_over,
        cluster.log.roles[-1][1].role.reason if cluster.log.roles else "",
        cluster.log.pauses,
    )
    return told | {"went_ahead": cluster.log.ahead}


async def live(
    options: argparse.Namespace, model: Path, gbit: float, load: Sequence[Arrival]
) -> dict[str, Any]:
    """Real processes, emulated devices, shaped ways."""
    slo = SloTarget(options.ttft_ms / 1000, options.tpot_ms / 1000)
    config = ClusterConfig(
        model=str(model),
        executor="emulated",
        hardware=options.hardware,
        instances=options.instances,
        stages=options.stages,
        policy="auto" if options.system == "auto" else "hybrid",
        routing=None if options.system == "auto" else "roles",
        prefill_instances=options.prefill_instances,
        network_gbit=gbit * REACHED / options.stages,
        ttft_ms=options.ttft_ms,
        tpot_ms=options.tpot_ms,
        log_level="error",
    )
    async with (
        LocalCluster(config) as cluster,
        AsyncClient(cluster.grpc_address, timeout=600) as client,
        AdminClient(cluster.grpc_address) as admin,
    ):
        start = time.monotonic() + 0.5
        course: list[tuple[float, dict[str, float]]] = []
        watching = asyncio.create_task(_watch(admin, start, course))
        found = await asyncio.gather(*(ask(client, one, start, (slo.ttft_s, slo.tpot_s)) for one in load))
        watching.cancel()
        members = await _members(admin)
        every = [one.status for one in (await client.status()).instances if one.status]
    moves = [one.hand_overs for one in every]
    if failed := [one.error for one in found if one.error]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    seen = figures(
        [one.ttft_s for one in found],
        [one.tpot_s for one in found],
        slo,
        float(np.mean([one.dispatch_s for one in every])),
    )
    told = _told(
        seen,
        {one["instance_id"]: one.get("prefill_share", 0.0) for one in members},
        sum(one.handed_over for one in moves if one),
        next((one.get("share_reason", "") for one in members), ""),
        [one.pause_s for one in found if one.tokens > 1],
    )
    return told | {
        "taken_over": sum(one.taken_over for one in moves if one),
        "recomputed": sum(one.recomputed for one in moves if one),
        "fetched_mb": round(sum(one.fetched_bytes for one in moves if one) / 1e6),
        "course": [(round(at, 1), sorted(shares.values(), reverse=True)) for at, shares in course],
        "load_average": os.getloadavg()[0],
    }


async def _members(admin: AdminClient) -> list[dict[str, Any]]:
    """All instances, as the router knows them."""
    return [member for macro in (await admin.groups())["macros"] for member in macro["members"]]


async def _watch(admin: AdminClient, start: float, course: list[tuple[float, dict[str, float]]]) -> None:
    """Shares of prefill by instance, whenever they are others, with the seconds since the start."""
    while True:
        members = await _members(admin)
        shares = {one["instance_id"]: round(one.get("prefill_share", 0.0), 2) for one in members}
        if not course or course[-1][1] != shares:
            course.append((time.monotonic() - start, shares))
        await asyncio.sleep(1.0)


def _told(
    seen: Figures, shares: Mapping[str, float], moved: int, why: str, pauses: Sequence[float]
) -> dict[str, Any]:
    p50, p90 = (1000 * np.percentile(pauses, (50, 90))).tolist() if pauses else (0.0, 0.0)
    return {
        "pause_p50_ms": round(p50, 1),
        "pause_p90_ms": round(p90, 1),
        "shares": [round(share, 2) for _, share in sorted(shares.items())],
        "handed_over": moved,
        "ttft_p90_ms": round(seen.ttft_p90_ms),
        "tpot_p50_ms": round(seen.tpot_p50_ms, 1),
        "tpot_p90_ms": round(seen.tpot_p90_ms, 1),
        "attainment": round(seen.attainment, 3),
        "dispatch_ms": round(seen.dispatch_ms, 2),
        "why": why,
    }


def main() -> None:
    """A line for each run, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["codellama-34b", "llama-30b"], choices=sorted(SHAPES))
    parser.add_argument("--tokenizer", default="smollm2-135m", help="model whose tokenizer is used")
    parser.add_argument("--hardware", default="l20")
    parser.add_argument("--gbit", nargs="+", type=float, default=[10.0], help="of each instance, each way")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument(
        "--system", default="roles", choices=["roles", "auto"], help="hybrid's instances with roles, or auto"
    )
    parser.add_argument("--prefill-instances", type=int, default=0, help="a fixed split; 0: shares move")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--ttft-ms", type=float, default=5000.0)
    parser.add_argument("--tpot-ms", type=float, default=150.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--virtual", action="store_true", help="no live runs")
    parser.add_argument("-o", "--output", type=Path, default=None, help="path without ending")
    options = parser.parse_args()
    load = arrivals(options.rate, options.seconds, options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shapes:
            model = model_folder(name, options.tokenizer, Path(folder))
            for gbit in options.gbit:
                worlds = {"virtual": virtual(options, model, gbit, load)}
                if not options.virtual:
                    worlds["live"] = asyncio.run(live(options, model, gbit, load))
                for world, found in worlds.items():
                    rows.append({"shape": name, "gbit": gbit, "world": world, "requests": len(load), **found})
                    print(json.dumps(rows[-1]), flush=True)
    if options.output is not None:
        write_rows(options, rows)


if __name__ == "__main__":
    main()
