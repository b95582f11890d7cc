"""What int8, or a quantized checkpoint, costs in quality: how likely it finds bfloat16's answers.

    python -m bench.int8_quality PROMPTS.jsonl --model smollm2-135m --requests 100 --out int8_quality.json
    python -m bench.int8_quality PROMPTS.jsonl --others smollm2-135m-awq smollm2-135m-Q4_0.gguf

PROMPTS.jsonl: one object with "prompt" (a question in words) per line. Each is put into the model's chat
template and answered greedily in bfloat16; then both arithmetics are given the same answers, token by token,
through the same executors that serve. Writes the mean log-probability of the answers' tokens, the perplexity,
and how often the other's likeliest token is the answer's. --others: checkpoints of the same model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.plan import Phase, PlanRow, SampledTokens, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams

BLOCK = 16
STEP_TOKENS = 512


class Listener:
    """Stands in for the sampler: notes how likely a given answer is, or takes the likeliest token."""

    def __init__(self, answers: Mapping[int, Sequence[int]] | None, prompts: Mapping[int, int]) -> None:
        """answers: tokens to be given, by key; None to take the model's own. prompts: their lengths."""
        self._answers = answers
        self._prompts = prompts
        self.logprobs: list[float] = []
        self.agree: list[bool] = []

    def start(self, start: SequenceStart) -> None:
        """Nothing to remember."""

    def release(self, key: int) -> None:
        """Nothing to forget."""

    def sample(
        self, logits: torch.Tensor, keys: Sequence[int], next_positions: Sequence[int]
    ) -> SampledTokens:
        """The next token of each row, given or likeliest."""
        best = logits.argmax(-1).tolist()
        tokens = best
        if self._answers is not None:
            places = zip(keys, next_positions, strict=True)
            tokens = [self._answers[key][position - self._prompts[key]] for key, position in places]
        logprobs = logits.float().log_softmax(-1)
        self.logprobs += logprobs[range(len(tokens)), tokens].tolist()
        self.agree += [token == likeliest for token, likeliest in zip(tokens, best, strict=True)]
        return SampledTokens(tuple(tokens))


def answer(
    model: str, quantization: str | None, prompts: Mapping[int, list[int]], tokens: int, listener: Listener
) -> dict[int, list[int]]:
    """Prefill all prompts, then `tokens` - 1 steps with a token of each; returns the answers."""
    backend = TorchBackend(
        model,
        device="cpu",
        dtype="bfloat16",
        quantization=quantization,
        memory_budget=4 << 30,
        make_sampler=lambda vocab_size, device: listener,
    )
    layers = backend.description.shape.layers
    blocks = {key: -(-(len(prompt) + tokens) // BLOCK) for key, prompt in prompts.items()}
    executor = backend.configure(StageSpec(0, 1, 0, layers, BLOCK, sum(blocks.values()), STEP_TOKENS))
    answers: dict[int, list[int]] = {}
    first_block = 0
    for step, (key, prompt) in enumerate(prompts.items(), 1):
        row = PlanRow(
            key,
            0,
            len(prompt),
            tuple(prompt),
            tuple(range(first_block, first_block + blocks[key])),
            sample=True,
        )
        first_block += blocks[key]
        start = SequenceStart(key, SamplingParams(temperature=0.0), len(prompt))
        answers[key] = list(_run(executor, StepPlan(step, Phase.PREFILL, (row,), (start,))))
    for step in itertools.count(len(prompts) + 1):
        length = step - len(prompts)
        if length == tokens:
            return answers
        rows = tuple(
            PlanRow(key, len(prompts[key]) + length - 1, 1, (answers[key][-1],), (), sample=True)
            for key in prompts
        )
        for key, token in zip(prompts, _run(executor, StepPlan(step, Phase.DECODE, rows)), strict=True):
            answers[key].append(token)
    raise AssertionError


def _run(executor: Executor, plan: StepPlan) -> tuple[int, ...]:
    sampled = executor.execute(plan, None).sampled
    assert sampled is not None
    return sampled.token_ids


def _figures(listener: Listener) -> dict[str, float]:
    mean = statistics.fmean(listener.logprobs)
    return {"mean_logprob": round(mean, 4), "perplexity": round(math.exp(-mean), 4)}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--others", nargs="*", default=[], help="quantized checkpoints, instead of int8")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(options.model, allow_download=False))
    lines = options.prompts.read_text().splitlines()[: options.requests]
    prompts = {}
    for key, line in enumerate(lines):
        chat = [{"role": "user", "content": json.loads(line)["prompt"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts[key] = tokenizer.encode(text, add_special_tokens=False)[:STEP_TOKENS]
    lengths = {key: len(prompt) for key, prompt in prompts.items()}
    full = Listener(None, lengths)
    answers = answer(options.model, None, prompts, options.tokens, full)
    report: dict[str, Any] = {
        "requests": len(prompts),
        "tokens": len(full.logprobs),
        "bfloat16": _figures(full),
    }
    others: dict[str, tuple[str, str | None]] = {other: (other, None) for other in options.others} or {
        "int8": (options.model, "int8")
    }
    for name, (model, quantization) in others.items():
        small = Listener(answers, lengths)
        answer(model, quantization, prompts, options.tokens, small)
        agree = round(statistics.fmean(small.agree), 4)
        report[Path(name).name] = {**_figures(small), "same_likeliest_token": agree}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
