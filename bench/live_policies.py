"""Policies side by side on real weights: clusters of one shape take turns at each rate, judged by one SLO.

    python -m bench.draw_workload azure_conversation_trace.csv --outputs 8:256 --requests 600 -o load.json
    python -m bench.live_policies load.json --shape stages --slo "2 s, 150 ms" --rates 1.5 2 2.5 3 -o OUT

All clusters of a shape run at once, and only the one whose turn it is is asked: what others do to the machine
falls on all alike. OUT.json is added to; a policy that misses the SLO by far is not asked at higher rates.
Goodput, as in bench.online_peers: the highest rate at which nine tenths of the requests met both targets.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.online_peers import (
    SLOS,
    Contender,
    Row,
    curves,
    goodput,
    measure,
    read,
    running,
    say,
    table,
    told,
    write,
)
from bench.peers.places import Places

SHAPES = {"stages": {"stages": 2}, "instances": {"instances": 2}}
AUTO = "tidepipe, auto"
POLICIES: Mapping[str, Mapping[str, Any]] = {
    AUTO: {"policy": "auto"},
    "padg": {"policy": "padg"},
    "padg, steps of 64": {"policy": "padg", "prefill_tokens": 64},
    "hybrid, steps of 64": {"policy": "hybrid", "routing": "least-loaded", "prefill_tokens": 64},
    "hybrid, steps of 128": {"policy": "hybrid", "routing": "least-loaded", "prefill_tokens": 128},
}
"""`auto` without a setting; the others at their defaults, and as one would tune them by hand here."""
HOPELESS = 0.6
"""Attainment below which a policy is not asked at higher rates."""


async def compare(options: argparse.Namespace) -> list[Row]:
    """All policies, in turn at each rate."""
    places = Places(options.folder, options.model)
    rows = read(options.out)
    first = 1 + max((row.round for row in rows if row.slo == options.slo), default=-1)
    chosen = [
        Contender(name, {options.slo: options.rates}, {**SHAPES[options.shape], **POLICIES[name]})
        for name in POLICIES
        if not options.only or name in options.only
    ]
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(running(one, options.slo, places, options.folder, "bfloat16"))
            for one in chosen
        ]
        for number in range(first, first + options.rounds):
            asked = list(zip(chosen, urls, strict=True))
            for rate in options.rates:
                # Whoever came first finds the machine as it was left: each rate begins with another one.
                for one, url in list(asked):
                    async for row in measure(one, options.slo, url, options, number, rates=[rate]):
                        rows.append(row)
                        write(rows, options.out)
                        say(row)
                        if row.figures.attainment < HOPELESS:
                            asked.remove((one, url))
                asked = asked[1:] + asked[:1]
    return rows


def ratios(rows: Sequence[Row]) -> list[str]:
    """`auto` beside the best of the others, a line for each SLO."""
    lines = []
    for slo, of_policies in curves(rows).items():
        found = {
            name: goodput([(rate, one.attainment) for rate, one in points])
            for name, points in of_policies.items()
        }
        best = max(rate for name, rate in found.items() if name != AUTO) if len(found) > 1 else 0.0
        if best and AUTO in found:
            lines.append(
                f"{slo}: auto {found[AUTO]:.2f}, best of the others {best:.2f}: {found[AUTO] / best:.2f}"
            )
    return lines


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="stages")
    parser.add_argument("--slo", choices=list(SLOS), required=True)
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    parser.add_argument("--only", nargs="*", choices=list(POLICIES))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, default=Path(), help="for logs")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    return told(compare(options), options.out, lambda rows: [table(rows), *ratios(rows)])


if __name__ == "__main__":
    raise SystemExit(main())
