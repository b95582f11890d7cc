"""Where a stage's time goes: the same scheduler and executors in one process, without a network.

    python -m bench.engine WORKLOAD.json --model smollm2-135m --stages 2 --out engine.json

WORKLOAD.json: [{"prompt": [token ids], "out": n}, ...]; all at once, greedy, end-of-sequence ignored.
Stages run one after the other on one thread, and only the processor time of that thread counts: the figures
hold on a busy machine too. A virtual clock runs the stages side by side, as if each had a core of its own and
the way between two processes took --hop-ms: its end is what the live system would take if RPC were free.
Writes, per stage and phase, the seconds of each kernel and of everything around them, and the greedy tokens'
digest, by which two versions can be told to give the same answers.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controller.scheduler.actions import Dispatch, Emit
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    SequencesArrived,
    StagesReady,
    StepDone,
)
from controller.scheduler.policies.catalog import make_setup, step_knob
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.split import stage_layers
from controller.service import LIKELY_DEVICE
from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.models.native.library import Kernel, NativeKernels
from stage_worker.models.native_stack import NativeStack
from tidepipe.batch.throughput import WorkloadItem, token_mix
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.model import Parallelism
from tidepipe_common.latency.profile import cost_model
from tidepipe_common.prefix import adapter_root, root_key
from tidepipe_common.settings.adapters import parse_adapters
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import Phase, SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams

KV_BLOCKS = 4096
_COUNTS = ("total", "steps", "tokens", "gflop", "gbyte")
MAX_STEP_TOKENS = 2048


class KernelClock:
    """Processor time per kernel, added up under the stage and phase that is set."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[int, str, str], float] = defaultdict(float)
        self.stage = 0
        self.phase = ""

    def add(self, name: str, seconds: float) -> None:
        """Count seconds."""
        self.seconds[self.stage, self.phase, name] += seconds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time every kernel that is called inside."""
        run, run_parts = NativeKernels.run, NativeKernels.run_parts

        def timed_run(
            kernels: NativeKernels, kernel: Kernel, arguments: object, total: int, least: int = 1
        ) -> None:
            begin = time.thread_time()
            run(kernels, kernel, arguments, total, least)
            self.add(_name(kernel, arguments), time.thread_time() - begin)

        def timed_parts(
            kernels: NativeKernels, kernel: Kernel, arguments: object, bounds: Sequence[int]
        ) -> None:
            begin = time.thread_time()
            run_parts(kernels, kernel, arguments, bounds)
            self.add(_name(kernel, arguments), time.thread_time() - begin)

        NativeKernels.run, NativeKernels.run_parts = timed_run, timed_parts  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            NativeKernels.run, NativeKernels.run_parts = run, run_parts  # type: ignore[method-assign]


def _name(kernel: Kernel, arguments: object) -> str:
    name: str = kernel.__name__.removeprefix("tidepipe_")
    head = getattr(getattr(arguments, "_obj", None), "float_out", 0)
    return "head" if head else name


def arrivals_of(items: Sequence[dict[str, Any]], stages: int) -> Iterator[Event]:
    """What the scheduler hears before the first step: stages, requests, and their lengths.

    A live controller knows these lengths, too: they end at their limit.
    """
    arrivals = tuple(
        NewSequence(
            f"{number:06d}",
            tuple(item["prompt"]),
            SamplingParams(temperature=0.0, max_tokens=item["out"], ignore_eos=True),
            prefix_root=adapter_root(root_key(""), item.get("adapter", "")).hex(),
            adapter=item.get("adapter", ""),
        )
        for number, item in enumerate(items)
    )
    yield StagesReady(1, stages, KV_BLOCKS)
    yield SequencesArrived(arrivals)
    for one, item in zip(arrivals, items, strict=True):
        yield LengthPredicted(one.sequence_id, float(item["out"]), float(item["out"]))


class Pipeline:
    """The stages, and the scheduler that feeds them."""

    def __init__(
        self, model: str, stages: int, options: argparse.Namespace, items: Sequence[dict[str, Any]]
    ) -> None:
        """items: the workload, for whose mix of prompt and output tokens the layers are split."""
        mix = token_mix([WorkloadItem(prompt=item["prompt"], out=item["out"]) for item in items])
        self.executors: list[Executor] = []
        self.ranges: list[tuple[int, int]] = []
        self.int8 = options.quantization == "int8"
        self.shape: ModelShape
        self.adapters: dict[str, str] = {}
        for index in range(stages):
            backend = TorchBackend(
                model,
                device=options.device,
                dtype=options.dtype,
                quantization=options.quantization,
                threads=1,
                memory_budget=8 << 30,
                adapters=parse_adapters(options.lora) if options.lora else (),
                model_code=options.model_code,
            )
            self.adapters = {one.name: one.fingerprint for one in backend.description.adapters}
            self.shape = backend.description.shape
            ranges = stage_layers(self.shape, stages, mix, options.layer_split)
            self.ranges.append(ranges[index])
            self.executors.append(
                backend.configure(
                    StageSpec(index, stages, *ranges[index], options.block_size, KV_BLOCKS, MAX_STEP_TOKENS)
                )
            )
        # As a live controller plans: with the data sheet's costs, without which `auto` is `td-pipe` on a CPU.
        device = LIKELY_DEVICE[options.device.partition(":")[0]]
        known = cost_model(self.shape, hardware(device), None, Parallelism(stages))
        knobs = {step_knob(options.policy): options.prefill_tokens} if options.prefill_tokens else {}
        setup = make_setup(options.policy, knobs, known, device, fixed=options.microbatches > 0)
        config = setup.config(
            self.shape.context_length,
            self.shape.eos_token_ids,
            block_size=options.block_size,
            microbatches=options.microbatches,
        )
        self.scheduler = Scheduler(config, setup.policy)

    def run(
        self, items: Sequence[dict[str, Any]], clock: KernelClock, hop_s: float
    ) -> tuple[dict[str, list[int]], float]:
        """Serve all requests; returns their tokens, and the end on the virtual clock, seconds."""
        answers: defaultdict[str, list[int]] = defaultdict(list)
        free = [0.0] * len(self.executors)
        order = itertools.count()
        events: list[tuple[float, int, Event]] = []
        named = [{**item, "adapter": self.adapters.get(item.get("adapter", ""), "")} for item in items]
        for event in arrivals_of(named, len(self.executors)):
            heapq.heappush(events, (0.0, next(order), event))
        now = 0.0
        while events:
            now, _, event = heapq.heappop(events)
            begin = time.thread_time()
            actions = self.scheduler.on(event, now)
            clock.stage, clock.phase = -1, "all"
            clock.add("scheduler", time.thread_time() - begin)
            for action in actions:
                if isinstance(action, Dispatch):
                    # Steps pass the stages in the order of dispatch, so each may be computed right away.
                    sampled, seconds = self._step(action.plan, clock)
                    at = now
                    for stage, compute in enumerate(seconds):
                        free[stage] = at = max(at + hop_s, free[stage]) + compute
                    done = StepDone(action.plan.step_id, sampled)
                    heapq.heappush(events, (at + hop_s, next(order), done))
                elif isinstance(action, Emit):
                    for sequence_id, token in zip(action.sequence_ids, action.token_ids, strict=True):
                        answers[sequence_id].append(token)
        return answers, now

    def _step(self, plan: StepPlan, clock: KernelClock) -> tuple[SampledTokens, list[float]]:
        """Compute a step; returns its tokens, and what each stage took."""
        hidden: bytes | memoryview | None = None
        times = []
        for index, executor in enumerate(self.executors):
            clock.stage = index
            clock.phase = "decode" if plan.phase is Phase.DECODE else "prefill"
            begin = time.thread_time()
            output = executor.execute(plan, hidden)
            times.append(time.thread_time() - begin)
            clock.add("total", times[-1])
            clock.add("steps", 1)
            clock.add("tokens", plan.tokens)
            gflop, gbyte = self._work(index, plan)
            clock.add("gflop", gflop)
            clock.add("gbyte", gbyte)
            hidden = bytes(output.hidden) if output.hidden is not None else None
        assert output.sampled is not None
        return output.sampled, times

    def _work(self, index: int, plan: StepPlan) -> tuple[float, float]:
        """Least work of a stage's step: arithmetic, and reading weights once and keys and values per row."""
        shape, (begin, end) = self.shape, self.ranges[index]
        contexts = sum(row.count * (row.first_position + (row.count + 1) / 2) for row in plan.rows)
        read = sum(row.first_position + row.count for row in plan.rows)
        weight_bytes = 1 if self.int8 else 2
        flop = 2.0 * shape.layer_parameters * plan.tokens + 4.0 * shape.heads * shape.head_dim * contexts
        # Of int8 there is a scale of 4 bytes with each key and value.
        slot_bytes = shape.head_dim + 4.0 if self.int8 else 2.0 * shape.head_dim
        nbytes = shape.layer_parameters * weight_bytes + 2.0 * shape.kv_heads * slot_bytes * read
        sampled = sum(row.sample for row in plan.rows) if index == len(self.ranges) - 1 else 0
        head_bytes = shape.head_parameters * weight_bytes if sampled else 0
        layers = end - begin
        return (
            (layers * flop + 2.0 * shape.head_parameters * sampled) / 1e9,
            (layers * nbytes + head_bytes) / 1e9,
        )


def report(clock: KernelClock, answers: dict[str, list[int]], virtual_s: float) -> dict[str, Any]:
    """What was measured, as JSON."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (stage, phase, name), seconds in sorted(clock.seconds.items()):
        row = table.setdefault("controller" if stage < 0 else f"stage {stage}", {}).setdefault(phase, {})
        row[name] = round(seconds, 4)
    for phases in table.values():
        for row in phases.values():
            if "total" in row:
                kernels = sum(v for name, v in row.items() if name not in _COUNTS)
                row["python"] = round(row["total"] - kernels, 4)
    digest = hashlib.sha256(json.dumps(sorted(answers.items())).encode()).hexdigest()[:16]
    busy = [
        round(sum(row["total"] for row in phases.values()) / virtual_s, 4)
        for name, phases in table.items()
        if name != "controller"
    ]
    return {
        "digest": digest,
        "output_tokens": sum(map(len, answers.values())),
        "virtual_s": round(virtual_s, 3),
        "busy": busy,
        "seconds": table,
    }


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What to run, and how."""
    parser.add_argument("workload", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--model-code", default="auto", help="as of tidepipe up")
    parser.add_argument("--lora", help="as of tidepipe up, with commas; an item may name its `adapter`")
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--prefill-tokens", type=int, default=0, help="0: by policy")
    parser.add_argument("--layer-split", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--requests", type=int, default=0, help="only the first so many")
    parser.add_argument("--microbatches", type=int, default=0)
    parser.add_argument("--out", type=Path)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_engine_options(parser)
    parser.add_argument("--hop-ms", type=float, default=0.0)
    parser.add_argument("--by-kernel", action="store_true", help="call each kernel by itself (slower)")
    options = parser.parse_args()
    if options.by_kernel:
        NativeStack.fits = staticmethod(lambda weights: False)  # type: ignore[method-assign]
    items = json.loads(options.workload.read_text())[: options.requests or None]
    pipeline = Pipeline(options.model, options.stages, options, items)
    clock = KernelClock()
    with clock.watching():
        answers, virtual_s = pipeline.run(items, clock, options.hop_ms / 1e3)
    result = report(clock, answers, virtual_s)
    result["arithmetic"] = options.quantization or options.dtype
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
