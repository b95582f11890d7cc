"""The instance that skips, against the controllers' own scheduler: the same requests through both.

python -m bench.online_exactness
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from bench.online_studies import STUDY, cluster, question
from controller.scheduler.policies.catalog import Knobs
from simulator.goodput import Run, measure
from simulator.systems import run_exactly, run_system

RATES = {"sharegpt-like": 28.0, "longbench-like": 6.0}
"""Near the goodput of the weakest system, requests per second."""
SYSTEMS: tuple[tuple[str, Knobs], ...] = (
    ("separate", {"routing": "least-loaded", "budget": 2048}),
    ("hybrid", {"routing": "least-loaded", "budget": 256}),
    ("padg-apart", {"budget": 2048}),
    ("padg", {"budget": 256}),
)


def main() -> None:
    """A Markdown table; CPU seconds of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    spec = cluster("l20", STUDY)
    runs: dict[str, Run] = {"skipping": run_system, "scheduler": run_exactly}
    print("| mix | system | instance | attained | TTFT p50/p90 ms | TPOT p50/p90 ms | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for mix, rate in RATES.items():
        asked = replace(question(mix, options.seed, options.seconds), least_requests=100)
        for system, knobs in SYSTEMS:
            for kind, run in runs.items():
                begun = time.process_time()
                f = measure(system, knobs, spec, asked, rate, run)
                spent = time.process_time() - begun
                name = f"{system} {knobs['budget']}"
                print(
                    f"| {mix} | {name} | {kind} | {f.attainment:.3f} | "
                    f"{f.ttft_ms['p50']:.0f} / {f.ttft_ms['p90']:.0f} | "
                    f"{f.tpot_ms['p50']:.1f} / {f.tpot_ms['p90']:.1f} | {spent:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
