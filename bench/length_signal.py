"""What the model's own state behind a prompt tells of its answers' lengths, beside the prompt's text.

    python -m bench.length_signal DRAWS.jsonl -o signal.json --model smollm2-135m --quantization int8

DRAWS.jsonl: many answers to each of many prompts (`bench.length_draws`). The last stage of a pipeline makes
the length signals, as it does when it serves. Folds by prompt: the text's model, heads on signals alone, and
heads on both are trained on answers to other prompts; what a head is told of the text comes from models that
had not seen the prompt either, as it does in the service. Shares between the plain quantile (0) and the floor
(1) as in `bench.length_floor`; `under way`: the same of answers that have so many tokens already, predicted
anew, or by the curve through P50 and P90 that was told at their start.

With --others PROMPTS.jsonl the text's model learns from one answer to each of the prompts that were not
drawn, too (bench/data); DRAWS.jsonl may then be without its prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.length_draws import drawn
from bench.length_floor import LENGTHS, Drawn, compared, other_answers, with_prompts
from bench.length_floor import LEVELS as JUDGED
from controller.scheduler.expectation import LengthBelief
from predictor.evaluation.signal_head import SignalHead, head_columns, told_columns
from predictor.training.fit import fit
from predictor.training.fit_head import fit_head
from predictor.training.head_samples import HeadSamples
from predictor.training.weighting import targets, weights
from stage_worker.executors.protocol import StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from tidepipe_common.lengths.calibration import Ends
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import LEVELS, Observation
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams

BLOCK, STEP_TOKENS, FOLDS = 16, 2048, 5
PLACES = [LEVELS.index(level) for level in JUDGED]
UNDER_WAY = (64, 128, 256)


def signals(texts: list[str], model: str, quantization: str | None) -> tuple[list[bytes], dict[str, float]]:
    """Of each prompt, as a chat's first message, from a pipeline of one stage; and what a signal takes."""
    from transformers import AutoTokenizer

    source = resolve_model(model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    backend = TorchBackend(model, device="cpu", quantization=quantization, memory_budget=2 << 30)
    layers = backend.description.shape.layers
    blocks = STEP_TOKENS // BLOCK
    executor = backend.configure(StageSpec(0, 1, 0, layers, BLOCK, blocks, STEP_TOKENS))
    found: list[bytes] = []
    spent: dict[bool, list[float]] = {True: [], False: []}
    params = SamplingParams(temperature=0.0)
    for number, text in enumerate(texts):
        chat = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"][-STEP_TOKENS:]
        row = PlanRow(1, 0, len(tokens), tuple(tokens), tuple(range(-(-len(tokens) // BLOCK))), sample=True)
        # Each twice, with and without, as what it takes is the difference; the second one is quicker.
        order = (True, False) if number % 2 else (False, True)
        for step, wanted in enumerate(order, 2 * number + 1):
            releases = (1,) if step > 1 else ()
            start = SequenceStart(1, params, len(tokens), wants_signal=wanted)
            plan = StepPlan(step, Phase.PREFILL, (row,), (start,), releases)
            began = time.thread_time()
            sampled = executor.execute(plan, None).sampled
            spent[wanted].append(time.thread_time() - began)
            assert sampled is not None
            found += [one.values for one in sampled.signals]
    more = np.array(spent[True]) - np.array(spent[False])
    return found, {
        "bytes": float(np.mean([len(one) for one in found])),
        "prompt_ms": 1e3 * float(np.median(spent[False])),
        "signal_ms": 1e3 * float(np.median(more[1:])),
    }


def samples_of(observations: list[Observation], prompts: list[int], columns: Floats) -> HeadSamples:
    """As the service makes them of what it observed."""
    lengths = np.array([float(one.output_tokens) for one in observations])
    ends = Ends.of(observations)
    numbers = np.array(prompts)
    return HeadSamples(
        columns, lengths, ends.cut, ends, numbers, weights(numbers, targets(lengths, ends.cut))
    )


class Folds:
    """Trained and judged on different prompts. found: (prompts, levels) tokens of each kind, by name."""

    def __init__(
        self,
        prompts: list[Drawn],
        values: list[bytes],
        answers: int,
        seed: int,
        others: list[Observation],
    ) -> None:
        """answers: of each prompt in training, at most. others: that the text's model learns from, too."""
        self.prompts = prompts
        chance = np.random.default_rng(seed)
        self.fold = chance.permutation(len(prompts)) % FOLDS
        names = ("text", "signal", "signal and text")
        self.found = {name: np.empty((len(prompts), len(LEVELS))) for name in names}
        self.heads: list[tuple[SignalHead, Floats]] = []
        for held in range(FOLDS):
            train = [
                (place, one)
                for place, prompt in enumerate(prompts)
                if self.fold[place] != held
                for one in prompt.observations()[:answers]
            ]
            train = [train[place] for place in chance.permutation(len(train))]
            places, known = [place for place, _ in train], [one for _, one in train]
            fitted = fit([*known, *others], "hazard/1")
            judged = np.flatnonzero(self.fold == held)
            features = [prompts[place].observations()[0].features for place in judged]
            told_known = told_columns(fitted.held_out[: len(known)].tolist())
            told_judged = told_columns(fitted.model.quantiles(features).tolist())
            self.found["text"][judged] = fitted.model.quantiles(features)
            limits, nothing = np.array([one.limit for one in features]), np.zeros(len(judged))
            for name, told in (("signal", 0.0), ("signal and text", 1.0)):
                known_columns = head_columns([values[place] for place in places], told * told_known)
                head = fit_head(samples_of(known, places, known_columns), "head/1")
                columns = head_columns([values[place] for place in judged], told * told_judged)
                self.found[name][judged] = head.quantiles(columns, limits, nothing)
            self.heads.append((head, columns))

    def under_way(self) -> dict[str, Any]:
        """Mean error of the median of the whole length, of answers that have so many tokens."""
        rows = {}
        for done in UNDER_WAY:
            kinds = ("asked again", "curve of the start", "P50 of the start")
            errors: dict[str, list[float]] = {name: [] for name in kinds}
            for held, (head, columns) in enumerate(self.heads):
                for place, row in zip(np.flatnonzero(self.fold == held), columns, strict=True):
                    prompt = self.prompts[place]
                    longer = prompt.lengths[prompt.lengths > done]
                    if not len(longer):
                        continue
                    limit = float(prompt.line["max_tokens"])
                    start = self.found["signal and text"][place]
                    at = np.array([float(done)])
                    again = head.quantiles(row[None], np.array([limit]), at)[0, PLACES[0]]
                    belief = LengthBelief.from_quantiles(start[PLACES[0]], start[PLACES[1]])
                    told = {
                        "asked again": again,
                        "curve of the start": min(limit, done + belief.remaining(done)),
                        "P50 of the start": max(start[PLACES[0]], done + 1.0),
                    }
                    for name, value in told.items():
                        errors[name] += np.abs(longer - value).tolist()
            rows[str(done)] = {name: float(np.mean(found)) for name, found in errors.items()}
        return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RESULT.json")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization", default=None, choices=["int8"])
    parser.add_argument("--answers", type=int, default=4, help="of each prompt, to train on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--others", type=Path, default=None, metavar="PROMPTS.jsonl")
    options = parser.parse_args()
    lines, others = drawn(options.draws), []
    if options.others is not None:
        lines = with_prompts(lines, options.others)
        others = other_answers(options.others, LENGTHS, lines)
    prompts = [Drawn(line, np.array(line["lengths"], dtype=np.float64)) for line in lines]
    values, cost = signals([str(one.line["prompt"]) for one in prompts], options.model, options.quantization)
    folds = Folds(prompts, values, options.answers, options.seed, others)
    report: dict[str, Any] = {"cost": cost, "answers_in_training": options.answers, "rows": {}}
    for name, quantiles in folds.found.items():
        report["rows"][name] = compared(prompts, quantiles[:, PLACES], prompts, options.seed)
    report["under way"] = folds.under_way()
    report["predictions"] = {
        str(prompt.line["id"]): {name: rows[place].tolist() for name, rows in folds.found.items()}
        for place, prompt in enumerate(prompts)
    }
    options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    shown = {name: part for name, part in report.items() if name != "predictions"}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
