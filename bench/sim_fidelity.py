"""How far the simulator is from live runs: same arrivals, lengths, settings; wall clock against virtual time.

    python -m bench.sim_fidelity WORKLOAD.json --stages 2 --rounds 3 --out docs/images/sim-fidelity

WORKLOAD.json: [{"prompt": [token ids], "out": n}, ...]; all at once, greedy, end-of-sequence ignored.
Measures a profile (or takes --profile), runs the workload live with real and with emulated stage workers,
and each run's journal again in virtual time: with steps at the pace of that run, with steps as the profile
says, and under the other policies, whose live runs that forecasts. Writes OUT.json (every run) and OUT.png.
Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMEOUT_S = 1800.0
WORLDS = {"torch": 0.15, "emulated": 0.10}
"""Executors, and how far off the simulator may be."""


def tidepipe(*arguments: str) -> dict[str, Any]:
    """Run a command with --json; its report."""
    command = [sys.executable, "-m", "tidepipe.cli.main", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def measure(options: argparse.Namespace, profile: Path, executor: str, policy: str) -> dict[str, Any]:
    """One live run, and the same in virtual time."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--model", options.model, "--stages", str(options.stages), "--executor", executor]
        settings += ["--profile", str(profile), "--policy", policy, "--journal", folder]
        if executor == "emulated":
            settings += ["--hardware", "cpu"]
        live = tidepipe("bench", "throughput", str(options.workload), *settings)
        (journal,) = Path(folder).glob("*.jsonl")
        again = tidepipe("sim", "journal", str(journal))
        profiled = tidepipe("sim", "journal", str(journal), "--as-profiled")
        others = [name for name in options.policies if name != policy]
        forecast = tidepipe("sim", "journal", str(journal), "--policy", ",".join(others)) if others else {}
    (virtual,) = again["what_if"]
    return {
        "executor": executor,
        "policy": policy,
        "live_s": live["seconds"],
        "journal_s": again["live"]["makespan_s"],
        "virtual_s": virtual["makespan_s"],
        "ratio": virtual["makespan_s"] / live["seconds"],
        "as_profiled_s": profiled["what_if"][0]["makespan_s"],
        "pace": again["live"]["pace"],
        "others_s": {one["policy"]: one["makespan_s"] for one in forecast.get("what_if", [])},
        "live_busy": [stage["busy"] for stage in live["stages"]],
        "virtual_busy": virtual["stage_busy"],
        "decided_otherwise": again["live"]["differing"],
    }


def draw(runs: list[dict[str, Any]], target: Path) -> None:
    """Bars side by side: live and virtual seconds, medians over the rounds."""
    keys = list(dict.fromkeys((run["executor"], run["policy"]) for run in runs))
    figure, axis = plt.subplots(figsize=(1.5 + 1.6 * len(keys), 3.6), layout="constrained")
    for offset, (name, label, colour) in enumerate(
        (("live_s", "live", "#3a7ca5"), ("virtual_s", "virtual time", "#d98f4e"))
    ):
        values = [
            statistics.median(run[name] for run in runs if (run["executor"], run["policy"]) == key)
            for key in keys
        ]
        bars = axis.bar([place + 0.4 * offset for place in range(len(keys))], values, 0.38, color=colour)
        axis.bar_label(bars, fmt="%.1f")
        bars.set_label(label)
    axis.set_xticks([place + 0.2 for place in range(len(keys))], [f"{e}\n{p}" for e, p in keys])
    axis.set_ylabel("seconds")
    axis.legend()
    figure.savefig(target, dpi=110)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--policies", nargs="+", default=["auto", "td-pipe", "hybrid"])
    parser.add_argument("--executors", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", type=Path, default=None, help="measured before; default: measure now")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    profile = options.profile
    if profile is None:
        profile = options.out.with_name(options.out.name + "-profile.csv")
        tidepipe("profile", "--model", options.model, "--stages", str(options.stages), "-o", str(profile))
    runs = []
    for _ in range(options.rounds):
        for executor in options.executors:
            for policy in options.policies:
                run = measure(options, profile, executor, policy)
                runs.append(run)
                print(
                    f"{executor:8} {policy:8} live {run['live_s']:6.1f} s, "
                    f"virtual {run['virtual_s']:6.1f} s: {run['ratio']:.3f} "
                    f"(aim within {WORLDS[executor]:.0%}), {run['decided_otherwise']} decisions differ",
                    flush=True,
                )
    options.out.with_suffix(".json").write_text(json.dumps(runs, indent=1))
    draw(runs, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
