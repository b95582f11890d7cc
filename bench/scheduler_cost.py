"""What a decision of the scheduler costs, CPU time, with many sequences running.

    python -m bench.scheduler_cost [--running 2000] [--stages 4] [--policy auto] [--doubt 2.5] [--targets]
    python -m bench.scheduler_cost --reuse --prompt 400 --shared 200 --blocks 100000

Feeds the scheduler a pipeline in virtual time with room for all sequences and times each event (a step's
results in, the next plan out; a sequence arrives). Prints the median, p99 and the worst, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np

from controller.scheduler.actions import Action, Dispatch
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    SequencesArrived,
    StagesReady,
    StepDone,
)
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.scheduler import Scheduler
from controller.service import tune_gc
from simulator.offline import PipelineSpec
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.prefix import root_key
from tidepipe_common.types.plan import SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams

BLOCK_SIZE = 16
MEAN_OUTPUT = 500
ARRIVE_EVERY = 8
"""Events between two arrivals."""


@dataclass(frozen=True, slots=True)
class Load:
    """What runs. doubt: predicted P90 over P50; 1 for certainty, which costs less to keep account of.

    prompt: tokens, of which all prompts share the first `shared`. blocks: of KV memory; 0: room for all that
    may run. reuse: KV blocks are found by content. targets: somebody waits for each answer.
    """

    running: int
    stages: int
    events: int
    doubt: float
    prompt: int = 24
    shared: int = 0
    blocks: int = 0
    reuse: bool = False
    targets: bool = False

    def sequence(self, number: int, tokens: int) -> NewSequence:
        """One of them."""
        prompt = (1,) * self.shared + (number + 2,) * (self.prompt - self.shared)
        root = root_key("").hex() if self.reuse else ""
        first_s, further_s = (5.0, 0.1) if self.targets else (None, None)
        return NewSequence(
            f"s{number}",
            prompt,
            SamplingParams(max_tokens=tokens),
            prefix_root=root,
            first_token_due=first_s,
            tpot_s=further_s,
        )


def measure(policy: str, load: Load) -> dict[str, float]:
    """Milliseconds per event in the steady state: as many sequences begin as end."""
    running, stages, events, doubt = load.running, load.stages, load.events, load.doubt
    spec = PipelineSpec(SHAPES["qwen2.5-32b"], hardware("l20"), stages, max_total=2048)
    setup = make_setup(policy, {"max_running": running}, spec.latency(), spec.hardware.name)
    config = setup.config(2048, (), max_sequences=1 << 30)
    scheduler = Scheduler(config, setup.policy)
    chance = np.random.default_rng(1)
    lengths = np.maximum(chance.exponential(MEAN_OUTPUT, running + 20 * events), 8).astype(int)
    # As in the controller: what comes later, sequences included, is looked through.
    tune_gc()
    waiting: list[StepPlan] = []
    costs: list[float] = []

    def handle(event: Event, *, timed: bool = False) -> None:
        start = time.thread_time()
        actions: list[Action] = scheduler.on(event, 0.0)
        if timed:
            costs.append((time.thread_time() - start) * 1000)
        waiting.extend(action.plan for action in actions if isinstance(action, Dispatch))

    # Room for all that may run, and more requests than ever do.
    blocks = load.blocks or round(1.5 * running * (load.prompt + MEAN_OUTPUT) / BLOCK_SIZE)
    arrivals = tuple(load.sequence(i, int(n)) for i, n in enumerate(lengths[: 3 * running]))
    handle(SequencesArrived(arrivals))
    for arrival, length in zip(arrivals, lengths, strict=False):
        handle(LengthPredicted(arrival.sequence_id, float(length), doubt * float(length)))
    handle(StagesReady(1, stages, blocks))
    warm_up = events // 2
    most = 0
    for index in range(warm_up + events):
        if not waiting:
            break
        plan = waiting.pop(0)
        tokens = (1,) * plan.samples
        handle(StepDone(plan.step_id, SampledTokens(tokens)), timed=index >= warm_up)
        if index % ARRIVE_EVERY == 0:
            one = load.sequence(len(arrivals) + index, int(lengths[index]))
            handle(SequencesArrived((one,)), timed=index >= warm_up)
        most = max(most, scheduler.running)
    median, p99 = np.percentile(costs, (50, 99))
    return {
        "running": float(most),
        "events": float(len(costs)),
        "p50_ms": float(median),
        "p99_ms": float(p99),
        "max_ms": max(costs),
        "found": scheduler.stats.reuse.found_tokens / max(1, scheduler.stats.reuse.asked_tokens),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--running", type=int, default=2000, help="sequences that run at a time")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--doubt", type=float, default=1.0, help="P90 over P50 of predictions; 1: certain")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of each prompt")
    parser.add_argument("--shared", type=int, default=0, help="of these, the same in all prompts")
    parser.add_argument("--blocks", type=int, default=0, help="KV blocks; 0: room for all that run")
    parser.add_argument("--reuse", action="store_true", help="find KV blocks by content")
    parser.add_argument("--targets", action="store_true", help="sequences have latency targets")
    parser.add_argument("--policy", default="auto,td-pipe,hybrid", help="comma-separated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = Load(
        options.running,
        options.stages,
        options.events,
        options.doubt,
        options.prompt,
        options.shared,
        options.blocks,
        options.reuse,
        options.targets,
    )
    figures = {policy: measure(policy, load) for policy in options.policy.split(",")}
    if options.json:
        print(json.dumps(figures))
        return
    for policy, figure in figures.items():
        print(
            f"{policy:10s} {figure['running']:.0f} running: p50 {figure['p50_ms']:.3f} ms, "
            f"p99 {figure['p99_ms']:.3f} ms, max {figure['max_ms']:.3f} ms over {figure['events']:.0f} events"
        )


if __name__ == "__main__":
    main()
