"""Drives the executors of a pipeline in one process, as a controller would."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from tidepipe_common.settings.adapters import AdapterPlace
from tidepipe_common.types.plan import Phase, PlanRow, SampledTokens, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


class GreedySampler:
    """Takes the most likely token; stands in for the real sampler."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.running: set[int] = set()

    def start(self, start: SequenceStart) -> None:
        self.running.add(start.key)

    def release(self, key: int) -> None:
        self.running.remove(key)

    def sample(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        assert self.running.issuperset(keys)
        assert len(logits) == len(keys) == len(next_positions)
        return SampledTokens(tuple(logits.argmax(-1).tolist()))


def make_pipeline(
    model: Path,
    stages: int,
    *,
    block_size: int = 16,
    kv_blocks: int = 64,
    max_step_tokens: int = 256,
    dtype: str = "float32",
    quantization: str | None = None,
    adapters: Sequence[AdapterPlace] = (),
) -> list[Executor]:
    """Executors of all stages, with layers split as evenly as it goes."""
    executors: list[Executor] = []
    for index in range(stages):
        backend = TorchBackend(
            str(model),
            device="cpu",
            dtype=dtype,
            quantization=quantization,
            make_sampler=GreedySampler,
            adapters=adapters,
        )
        layers = backend.description.shape.layers
        executors.append(
            backend.configure(
                StageSpec(
                    index=index,
                    count=stages,
                    layer_begin=index * layers // stages,
                    layer_end=(index + 1) * layers // stages,
                    block_size=block_size,
                    kv_blocks=kv_blocks,
                    max_step_tokens=max_step_tokens,
                )
            )
        )
    return executors


def run_step(executors: Sequence[Executor], plan: StepPlan) -> tuple[int, ...]:
    """Pass one step through all stages; tokens travel to the first stage only."""
    return run_whole_step(executors, plan).token_ids


def run_whole_step(executors: Sequence[Executor], plan: StepPlan) -> SampledTokens:
    """The same, and all that the last stage says."""
    hidden: bytes | memoryview | None = None
    bare = StepPlan(
        plan.step_id,
        plan.phase,
        tuple(
            PlanRow(row.key, row.first_position, row.count, (), row.new_blocks, row.sample)
            for row in plan.rows
        ),
        plan.starts,
        plan.releases,
    )
    for index, executor in enumerate(executors):
        output = executor.execute(bare if index else plan, hidden)
        hidden = None if output.hidden is None else bytes(output.hidden)
    assert output.sampled is not None
    return output.sampled


def generate(
    executors: Sequence[Executor],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    block_size: int = 16,
    chunk: int = 1000,
    stagger: int = 0,
    adapters: Sequence[str] = (),
) -> list[list[int]]:
    """Greedy tokens for each prompt.

    chunk: prompt tokens of one sequence in one step. stagger: sequence i begins after i x stagger steps,
    so that steps mix prefill and decode. adapters: of each prompt the fingerprint, empty for none.
    """
    free = list(range(executors[0].kv_blocks))
    random.Random(0).shuffle(free)
    tokens = [list(prompt) for prompt in prompts]
    lengths = [0] * len(prompts)
    blocks = [0] * len(prompts)
    finals = [len(prompt) + new_tokens for prompt in prompts]
    for step_id in itertools.count(1):
        rows, starts = [], []
        for index, known in enumerate(tokens):
            if len(known) == finals[index] or step_id <= index * stagger:
                continue
            first = lengths[index]
            if first == 0:
                adapter = adapters[index] if adapters else ""
                starts.append(
                    SequenceStart(key=100 + index, sampling=GREEDY, prompt_tokens=len(known), adapter=adapter)
                )
            part = known[first : first + chunk]
            needed = -(-(first + len(part)) // block_size) - blocks[index]
            new_blocks = tuple(free.pop() for _ in range(needed))
            blocks[index] += needed
            lengths[index] += len(part)
            sample = lengths[index] == len(known)
            rows.append(PlanRow(100 + index, first, len(part), tuple(part), new_blocks, sample))
        if not rows and step_id > len(prompts) * stagger:
            break
        sampled = run_step(executors, StepPlan(step_id, Phase.PREFILL, tuple(rows), tuple(starts)))
        for row, token in zip([row for row in rows if row.sample], sampled, strict=True):
            tokens[row.key - 100].append(token)
    return [known[len(prompt) :] for known, prompt in zip(tokens, prompts, strict=True)]
