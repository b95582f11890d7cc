"""vLLM's pipeline with TidePipe's scheduler inside it, beside vLLM's own: online and offline.

    python -m bench.peers setup vllm
    python -m bench.draw_workload azure_conversation_trace.csv --outputs 8:256 --requests 600 -o load.json
    python -m bench.vllm_scheduler online load.json --rates 1.5 1.75 2 --rounds 3 -o OUT
    python -m bench.vllm_scheduler offline a.json b.json --rounds 3 -o OUT

--systems: who takes part. `own` is vLLM as it comes, `ours` the same with `--scheduler-cls
tidepipe.vllm.Scheduler`, each with settings behind it: `own,max_num_batched_tokens=128`,
`ours,TIDEPIPE_VLLM_POLICY=gllm`, `own,even` (layers divided by time, not by number). Each system's turn comes
once a round. What OUT.json has is not run again, so the same command goes on where it was; OUT.png shows all.

online: Poisson over HTTP against `vllm serve`, the same requests for everybody at a rate; rates rise until no
SLO is attained. offline: all requests of a workload at once, and how long each stage computed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

from bench import online_peers as online
from bench.peers.children import PeerError, end_children_when_ended
from bench.peers.places import Places
from bench.peers.vllm import Vllm
from tidepipe_common.errors import ConfigError, TidePipeError
from tidepipe_common.model_source import cache_dir
from workloads.loadgen.figures import Figures

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SLOS = {"5 s, 100 ms": (5000.0, 100.0), "2 s, 100 ms": (2000.0, 100.0)}
OWN, OURS = "own", "ours"
EVEN = "even"
"""Among the settings: layers are divided by time."""
ONLINE = (OWN, "own,max_num_batched_tokens=128", OURS)
OFFLINE = (
    OWN,
    "own,max_num_batched_tokens=1024",
    "ours,TIDEPIPE_VLLM_POLICY=vllm-capped",
    "ours,TIDEPIPE_VLLM_POLICY=gllm",
    OURS,
)
_OF_OTHER_COMPARISONS = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_model_len",
    "enable_prefix_caching",
)
"""Settings that `bench.peers` gives, and this comparison leaves to vLLM."""
STAGE_TIMES = "STAGE_TIMES"
TIMELINE = "TIDEPIPE_VLLM_TIMELINE"
ROOT = Path(__file__).resolve().parent.parent


def system(text: str, options: argparse.Namespace, *, times: bool) -> Vllm:
    """What `--systems` names. All that nobody sets is vLLM's default. times: its workers note theirs."""
    places = Places(options.folder, options.model)
    name, *settings = text.split(",")
    if name not in (OWN, OURS):
        raise ConfigError(f"--systems: {text!r} is none; give {OWN} or {OURS}, with settings behind commas")
    engine: dict[str, Any] = dict.fromkeys(_OF_OTHER_COMPARISONS)
    variables = {"PYTHONPATH": str(ROOT)}
    for setting in settings:
        if setting == EVEN:
            continue
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--systems: {setting!r} of {text!r} must be NAME=VALUE")
        if key.isupper():
            variables[key] = value
        else:
            engine[key] = json.loads(value) if value[:1].isdigit() or value in ("true", "false") else value
    if name == OURS:
        engine["scheduler_cls"] = "tidepipe.vllm.Scheduler"
        variables.setdefault(TIMELINE, str(options.folder / "timeline.jsonl"))
    if times:
        engine["worker_cls"] = "bench.peers.scripts.timed_worker.TimedWorker"
        variables[STAGE_TIMES] = str(options.folder)
    label = re.sub(r"[,=/]", "-", text)
    return Vllm(
        places,
        1,
        options.stages,
        options.dtype,
        settings=engine,
        variables=variables,
        label=label,
        even=EVEN in settings,
    )


# -- online -----------------------------------------------------------------------------------------


async def compare_online(options: argparse.Namespace) -> None:
    """All systems, in turn, at all rates."""
    path = options.out.with_suffix(".json")
    rows = [online.Row(**{**one, "figures": Figures(**one["figures"])}) for one in _read(path)]
    for number in range(options.rounds):
        for name in options.systems:
            had = {row.figures.rate for row in rows if (row.server, row.round) == (name, number)}
            rates = [rate for rate in options.rates if rate not in had]
            if not rates:
                continue
            vllm = system(name, options, times=False)
            one = online.Contender(name, {"": rates})
            async with online.serving(vllm, options.folder / f"{vllm.name}.log") as url:
                async for row in online.measure(one, "", url, options, number, SLOS):
                    rows.append(row)
                    _write(path, [asdict(row) for row in rows])
                    print(f"round {number + 1}, {_said(row)}", flush=True)
    online.draw(rows, options.out.with_suffix(".png"), SLOS)
    print(online.table(rows))


def _said(row: online.Row) -> str:
    figures = row.figures
    return (
        f"{row.server}, {row.slo}: {figures.rate:g} req/s, {figures.attainment:.1%}, "
        f"TTFT P90 {figures.ttft_ms['p90']:.0f} ms, "
        f"TPOT P50 {figures.tpot_ms['p50']:.0f} P90 {figures.tpot_ms['p90']:.0f} ms, "
        f"{figures.failed} failed, others {row.others_cores:.2f} cores"
    )


# -- offline ----------------------------------------------------------------------------------------

Run = dict[str, Any]


def compare_offline(options: argparse.Namespace) -> None:
    """All systems, in turn, each workload at once."""
    path = options.out.with_suffix(".json")
    runs = _read(path)
    for number in range(options.rounds):
        for workload in options.workloads:
            for name in options.systems:
                key = {"workload": workload.stem, "system": name, "round": number}
                if any(key.items() <= run.items() for run in runs):
                    continue
                vllm = system(name, options, times=True)
                figures = vllm.measure(workload, options.folder)
                if figures["short"]:
                    raise PeerError(f"{name}: {figures['short']} answers are shorter than was asked for")
                busy = stages_busy(options.folder, options.stages, figures["seconds"])
                runs.append({**key, **figures, "busy": busy})
                _write(path, runs)
                print(f"round {number + 1}, {workload.stem}: {name} {figures['seconds']:.1f} s", flush=True)
    draw_offline(runs, options.out.with_suffix(".png"))
    print(offline_table(runs))


def stages_busy(folder: Path, stages: int, seconds: float) -> list[float]:
    """Share of the last so many seconds in which each stage computed, by its worker's clock."""
    found = []
    for stage in range(stages):
        lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
        begin = lines[-1]["end"] - seconds
        spans = [one["end"] - one["begin"] - one["waited"] for one in lines if one["begin"] >= begin]
        found.append(round(sum(spans) / seconds, 4))
    return found


def offline_table(runs: Sequence[Run]) -> str:
    """Markdown. Ratios: of the medians, against the quickest of vLLM's own."""
    lines = [
        "| workload | system | seconds, each run | times vLLM's own best | stages busy |",
        "|---" * 5 + "|",
    ]
    for workload, of_systems in _by_workload(runs).items():
        best = min((_seconds(some) for name, some in of_systems.items() if name.startswith(OWN)), default=0.0)
        for name, some in of_systems.items():
            seconds = ", ".join(f"{run['seconds']:.1f}" for run in some)
            ratio = f"{best / _seconds(some):.2f}" if best else "-"
            busy = [run["busy"] for run in some if run["busy"]]
            shares = [statistics.median(stage) for stage in zip(*busy, strict=True)]
            said = ", ".join(f"{share:.0%}" for share in shares)
            lines.append(f"| {workload} | {name} | {seconds} | {ratio} | {said} |")
    return "\n".join(lines)


def _by_workload(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(run["workload"], {}).setdefault(run["system"], []).append(run)
    return found


def _seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(float(run["seconds"]) for run in runs)


def draw_offline(runs: Sequence[Run], target: Path) -> None:
    """Bars of seconds, the rounds as dots; axes for each workload."""
    found = _by_workload(runs)
    figure, axes = plt.subplots(
        1, len(found), figsize=(5 * len(found), 2.8), layout="constrained", squeeze=False
    )
    for (workload, of_systems), axis in zip(found.items(), axes[0], strict=True):
        for place, (name, some) in enumerate(reversed(of_systems.items())):
            axis.barh(place, _seconds(some), color="#3a7ca5" if name.startswith(OURS) else "#b0b8c1")
            axis.plot([run["seconds"] for run in some], [place] * len(some), "k.", markersize=4)
        axis.set_yticks(range(len(of_systems)), list(reversed(of_systems)), fontsize="small")
        axis.set_xlabel("seconds (median; dots: single runs)")
        axis.set_title(workload, fontsize="small")
    figure.savefig(target, dpi=110)
    plt.close(figure)


# -- both -------------------------------------------------------------------------------------------


def _read(path: Path) -> list[Any]:
    found: list[Any] = json.loads(path.read_text()) if path.exists() else []
    return found


def _write(path: Path, runs: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1) + "\n")


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    served = commands.add_parser("online")
    served.add_argument("workload", type=Path)
    served.add_argument("--rates", type=float, nargs="+", default=[1.0, 1.5, 1.75, 2.0, 2.25])
    served.add_argument("--seconds", type=float, default=45.0, help="of each rate")
    served.add_argument("--seed", type=int, default=0)
    served.set_defaults(systems=ONLINE, scale=1.0)
    batch = commands.add_parser("offline")
    batch.add_argument("workloads", type=Path, nargs="+")
    batch.set_defaults(systems=OFFLINE)
    for command in (served, batch):
        command.add_argument(
            "--folder", type=Path, default=cache_dir() / "peers", help="environments of the peers"
        )
        command.add_argument("--model", default="smollm2-135m")
        command.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
        command.add_argument("--stages", type=int, default=2)
        command.add_argument("--systems", nargs="*", metavar="SYSTEM", help="default: %(default)s")
        command.add_argument("--rounds", type=int, default=1)
        command.add_argument("-o", "--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    os.environ.setdefault("NO_PROXY", "*")
    end_children_when_ended()
    try:
        if options.command == "online":
            asyncio.run(compare_online(options))
        else:
            compare_offline(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TidePipeError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
