"""Batch work beside online work: what it costs the others, and how much of it gets done in what they leave.

    python -m bench.batch_in_slack OUT.json [--policies hybrid auto padg] [--rates 1 2] [--plot OUT.png]

One instance of Llama-2-13B on four L20, virtual time, the scheduler itself. Online requests (ShareGPT-like)
come as a Poisson process, targets 5 s and 100 ms; a batch of 1,000 such requests is there from the start.
Alone: no batch. Ordinary: its lines are requests like all others. In slack: nobody waits for them. Steps of
hybrid and padg have 256 tokens at most; auto chooses by throughput.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from bench.online_pictures import pyplot
from controller.scheduler.actions import Action, Emit
from controller.scheduler.background import Background
from controller.scheduler.events import Event, NewSequence
from controller.scheduler.policies.catalog import Knobs
from controller.scheduler.scheduler import Scheduler
from simulator.offline import PipelineSpec, scheduler_of
from simulator.pipeline import SimulatedInstance
from simulator.predictions import predictor
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.settings.defaults import BLOCK_SIZE, TPOT_S, TTFT_S
from workloads.arrivals import MIXES, parse_arrivals, requests_at
from workloads.mixes import SimRequest

LINES = 1000
STEP_TOKENS = 256
KNOBS: dict[str, Knobs] = {
    "hybrid": {"token_budget": STEP_TOKENS},
    "padg": {"token_budget": STEP_TOKENS},
    "auto": {},
}
WAYS = ("alone", "ordinary", "in slack")


@dataclass(slots=True)
class Heard:
    """When each request got its first and its last token, and how many."""

    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class Listening(Scheduler):
    """A scheduler whose tokens are timed."""

    heard: Heard

    def on(self, event: Event, now: float) -> list[Action]:
        """See Scheduler."""
        actions = super().on(event, now)
        for action in actions:
            if isinstance(action, Emit):
                for name in action.sequence_ids:
                    self.heard.first.setdefault(name, now)
                    self.heard.last[name] = now
                    self.heard.tokens[name] = self.heard.tokens.get(name, 0) + 1
        return actions


class Serving(SimulatedInstance):
    """An instance whose first `lines` requests are a batch's."""

    lines = 0
    way = ""

    def _sequence(self, index: int) -> NewSequence:
        made = super()._sequence(index)
        if index < self.lines and self.way == "in slack":
            return replace(made, background=True)
        targets = {"first_token_due": self.now + TTFT_S, "tpot_s": TPOT_S}
        return replace(made, **targets)


def run(policy: str, rate: float, seed: int, way: str, seconds: float) -> dict[str, Any]:
    """Figures of the online requests, and of the batch until the last of them has come."""
    spec = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, max_total=4096)
    online = requests_at(
        MIXES["sharegpt-like"](5000, seed), parse_arrivals("poisson"), rate, int(rate * seconds), seed
    ).requests
    lines = MIXES["sharegpt-like"](LINES, seed + 100).at_once().requests if way != "alone" else ()
    requests: tuple[SimRequest, ...] = (*lines, *online)
    made, cost, _ = scheduler_of(spec, policy, KNOBS[policy], len(requests))
    scheduler = Listening(made.config, made.policy)
    scheduler.heard, scheduler.background = Heard(), Background(cost)
    instance = Serving(scheduler, cost, 4, cost.kv_blocks(BLOCK_SIZE))
    instance.lines, instance.way = len(lines), way
    result = instance.run(requests, predictor("oracle")(requests, seed))
    heard, end = scheduler.heard, max(one.arrival_s for one in online)
    good, ttfts, tpots = 0, [], []
    for index, request in enumerate(online, start=len(lines)):
        name = f"r{index}"
        ttft = heard.first[name] - request.arrival_s
        tpot = (heard.last[name] - heard.first[name]) / max(1, heard.tokens[name] - 1)
        good += ttft <= TTFT_S and tpot <= TPOT_S
        ttfts.append(ttft)
        tpots.append(tpot)
    done = sum(
        lines[index].output_tokens for index in range(len(lines)) if heard.last.get(f"r{index}", end) < end
    )
    return {
        "policy": policy,
        "rate": rate,
        "seed": seed,
        "way": way,
        "attainment": good / len(online),
        "ttft_p90_s": _p90(ttfts),
        "tpot_p90_s": _p90(tpots),
        "batch_tokens_per_s": done / end,
        "busy": mean(result.stage_busy),
        "preemptions": result.preemptions,
    }


def _p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--policies", nargs="+", default=list(KNOBS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    rows = []
    for policy in chosen.policies:
        for rate in chosen.rates:
            for way in WAYS:
                found = [run(policy, rate, seed, way, chosen.seconds) for seed in chosen.seeds]
                rows += found
                print(
                    f"{policy:7} {rate:4g} req/s {way:9} "
                    f"within {mean(one['attainment'] for one in found):6.1%}, "
                    f"TTFT P90 {mean(one['ttft_p90_s'] for one in found):5.2f} s, "
                    f"TPOT P90 {1000 * mean(one['tpot_p90_s'] for one in found):4.0f} ms, "
                    f"batch {mean(one['batch_tokens_per_s'] for one in found):5.0f} tokens/s",
                    flush=True,
                )
    chosen.out.write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    if chosen.plot is not None:
        draw(rows, chosen.plot)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per policy: the others' TPOT, and how much of the batch gets done beside them."""
    plt = pyplot()
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure, panels = plt.subplots(
        2, len(policies), figsize=(4 * len(policies), 6), squeeze=False, sharex=True
    )
    for column, policy in enumerate(policies):
        for way in WAYS:
            mine = [row for row in rows if row["policy"] == policy and row["way"] == way]
            rates = sorted({row["rate"] for row in mine})
            for axes, name, scale in (
                (panels[0][column], "tpot_p90_s", 1000),
                (panels[1][column], "batch_tokens_per_s", 1),
            ):
                means = [scale * mean(row[name] for row in mine if row["rate"] == rate) for rate in rates]
                axes.plot(rates, means, marker="o", label=way)
        panels[0][column].axhline(1000 * TPOT_S, color="grey", linestyle=":")
        panels[0][column].set_title(policy)
        panels[1][column].set_xlabel("online requests/s")
    panels[0][0].set_ylabel("TPOT P90 of the online ones, ms")
    panels[1][0].set_ylabel("batch, output tokens/s")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
