"""What predictions of real answers are worth in virtual time: the share of perfect lengths' gain over none.

    python -m bench.length_worth DRAWS.jsonl SIGNAL.json -o WORTH.json [--profile L20_LLAMA2_13B.csv]
    python -m bench.length_worth DRAWS.jsonl SIGNAL.json -o WORTH.json --mix sharegpt-like --mix AZURE.csv

DRAWS.jsonl: answers (`bench.length_draws`). SIGNAL.json: what `bench.length_signal` predicted of each prompt
by models that had seen no answer to it. Llama2-13B on four L20; requests are drawn from the answers, all at
once. `text` knows the prompt's text when a request comes; `signal` learns what the model's state tells
with its first token; `siblings` knows the quantiles of the prompt's other answers: nearly the best there is.

With --mix requests are drawn from that workload, and told what was told of the real answer with the same rank
among real answers (`bench/length_carry.py`). With --cut N no answer has more than N tokens, and all know it.
--systems names `auto` with one use of lengths, or one technique, taken away, too (ABLATED). --kinds names
`correlation X`, too: whoever knows so much of each length (normal scores, as in `bench.length_order`);
`noise:X`, as `tidepipe sim` does; and of a mix `prompt's length`: our model of the text, without text,
trained on as many other requests of the mix as the service keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.special import ndtri

from bench.length_carry import TOLD, Answers, ranked
from bench.length_draws import drawn
from bench.length_order import predictions
from controller.scheduler import admission
from controller.scheduler.expectation import LengthBelief
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.sequence import Sequence as Running
from controller.scheduler.state import PipelineState
from predictor.learning import WINDOW
from predictor.training.fit import fit
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import Predict, Quantiles, predictor
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures
from tidepipe_common.settings.defaults import LEAST_ANSWERS
from workloads.files import open_workload
from workloads.mixes import SimRequest, Workload

LIMIT = 512
"""max_tokens of the real answers."""
LONGEST = 2048
"""Tokens of one request at most, and twice those of a prompt."""
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "td-pipe": ("td-pipe", {}),
    "hybrid by forecast": ("hybrid", {"occupancy": 0.0}),
}
ABLATED: dict[str, tuple[str, dict[str, Any]]] = {
    "auto in order of arrival": ("auto", {"order": False}),
    "auto without stealing": ("auto", {"stealing": "none"}),
    "auto with newest victims": ("auto", {"victims": "newest"}),
    "auto admitting without lengths": ("auto", {}),
    "auto sizing steps without lengths": ("auto", {}),
}
"""The last two have predictions for all but that: there they go by what they saw, as without any."""
BY_PROMPT = "prompt's length"
KINDS: dict[str, tuple[str | None, str | None]] = {
    "none": (None, None),
    "plain quantile": ("plain", None),
    "text": ("text", None),
    "text then signal": ("text", "signal and text"),
    "siblings": ("siblings", None),
    "oracle": ("oracle", None),
}
"""What is known of a request when it comes, and with its first token."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Requests, and what each predictor says of them. others: of the same source, to learn from."""

    workload: Workload
    told: dict[str, list[Quantiles]]
    others: tuple[SimRequest, ...] = ()

    def told_by(self, name: str, seed: int) -> list[Quantiles]:
        """One of each request. name: of `told`; or `correlation X`, `noise:X`, BY_PROMPT."""
        if name.startswith("noise:"):
            return predictor(name)(self.workload.requests, seed)
        if name.startswith("correlation "):
            outputs = np.array([float(one.output_tokens) for one in self.workload.requests])
            chance = np.random.default_rng([seed, 2])
            found = predictions(outputs, float(name.removeprefix("correlation ")), chance).tolist()
            return [(p50, p90) for p50, p90 in found]
        if name == BY_PROMPT and name not in self.told:
            self.told[name] = by_prompt(self.others, self.workload.requests)
        return self.told[name]

    def quality(self) -> dict[str, dict[str, float]]:
        """Errors of each predictor, by its name.

        mae: of the median, tokens. log_error: standard deviation of the truth's logarithm around it.
        correlation: of its normal scores with the truth's; 0 for one that tells all the same.
        """
        lengths = np.array([one.output_tokens for one in self.workload.requests])
        rows = {}
        for name, found in self.told.items():
            p50, p90 = np.array(found).T
            rows[name] = {
                "mae": float(np.abs(lengths - p50).mean()),
                "p50_covers": float((lengths <= p50).mean()),
                "p90_covers": float((lengths <= p90).mean()),
                "log_error": float(np.log(lengths / p50).std()),
                "correlation": float(np.corrcoef(_scores(lengths), _scores(p50))[0, 1]) if p50.std() else 0.0,
            }
        return rows


def by_prompt(others: Sequence[SimRequest], asked: Sequence[SimRequest]) -> list[Quantiles]:
    """What the service's own model says of requests, of whose prompts it knows nothing but the length."""

    def features(one: SimRequest) -> RequestFeatures:
        return RequestFeatures(one.prompt_tokens, one.max_tokens or None, 0.0)

    known = [Observation(features(one), one.output_tokens, censored=False) for one in others[:WINDOW]]
    model = fit(known, "hazard/1").model
    found = model.quantiles([features(one) for one in asked], (0.5, 0.9)).tolist()
    return [(p50, p90) for p50, p90 in found]


def _scores(values: Floats) -> Floats:
    """Normal scores; equal values have equal ones."""
    ordered = np.sort(values)
    places = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(ndtri(places / (2 * len(values))), dtype=np.float64)


def quantiles(lines: list[dict[str, Any]], predicted: dict[str, Any]) -> dict[str, Floats]:
    """(answers, LEVELS) tokens, by the name of who predicts."""
    sizes = [len(line["lengths"]) for line in lines]
    plain = np.quantile(np.concatenate([line["lengths"] for line in lines]), LEVELS)
    return {
        "plain": np.tile(plain, (sum(sizes), 1)),
        **{
            name: np.repeat([predicted[line["id"]][name] for line in lines], sizes, axis=0)
            for name in ("text", "signal and text")
        },
        "siblings": np.array(
            [
                np.quantile(np.delete(line["lengths"], place), LEVELS)
                for line in lines
                for place in range(len(line["lengths"]))
            ]
        ),
    }


class Draws:
    """Requests drawn from the real answers, or from another mix."""

    def __init__(self, lines: list[dict[str, Any]], known: dict[str, Floats], count: int) -> None:
        """lines: as `bench.length_draws` wrote them. known: see `quantiles`. count: of requests."""
        self.lines, self.known, self._count = lines, known, count

    @classmethod
    def of(cls, draws: Path, signal: Path, count: int) -> Draws:
        """From what the two benches wrote."""
        predicted = json.loads(signal.read_text(encoding="utf-8"))["predictions"]
        lines = [line for line in drawn(draws) if line["id"] in predicted]
        return cls(lines, quantiles(lines, predicted), count)

    def real(self, seed: int) -> Draw:
        """With repetition."""
        places = [(line["prompt_tokens"], length) for line in self.lines for length in line["lengths"]]
        chosen = np.random.default_rng(seed).choice(len(places), self._count)
        requests = tuple(
            SimRequest(prompt, max(1, length), LIMIT)
            for prompt, length in (places[int(place)] for place in chosen)
        )
        told: dict[str, list[Quantiles]] = {
            name: [(p50, p90) for p50, p90 in rows[chosen][:, TOLD].tolist()]
            for name, rows in self.known.items()
        }
        return _with_oracle(Workload("real answers", requests), told)

    def carried(self, source: str, cut: int, seed: int) -> Draw:
        """Of that mix. cut: tokens of an answer at most; 0: as many as it has."""
        whole = open_workload(source, self._count, seed).within(LONGEST // 2, LONGEST)
        mix = whole.sample(self._count, seed)
        there = {id(one) for one in mix.requests}
        others = tuple(one for one in whole.requests if id(one) not in there)
        if len(others) < LEAST_ANSWERS:
            # A mix that is drawn anew by each seed.
            others = open_workload(source, self._count, seed + 100).within(LONGEST // 2, LONGEST).requests
        errors = ranked(Answers.of(self.lines), self.known, "signal and text", seed)
        outputs = [one.output_tokens for one in mix.requests]
        told = errors.predictions(outputs, np.random.default_rng([seed, 1]))
        if cut:
            mix = replace(
                mix,
                requests=tuple(
                    replace(one, output_tokens=min(one.output_tokens, cut), max_tokens=cut)
                    for one in mix.requests
                ),
            )
            told = {name: [_cut(one, cut) for one in rows] for name, rows in told.items()}
        return _with_oracle(mix, told, others)


def _with_oracle(
    workload: Workload, told: dict[str, list[Quantiles]], others: tuple[SimRequest, ...] = ()
) -> Draw:
    lengths = [float(one.output_tokens) for one in workload.requests]
    return Draw(workload, {**told, "oracle": [(one, one) for one in lengths]}, others)


def _cut(one: Quantiles, limit: int) -> Quantiles:
    return one and (min(one[0], limit), min(one[1], limit))


@contextlib.contextmanager
def _taken_away(system: str) -> Iterator[None]:
    """What knobs cannot say of an ablated system, while it runs."""

    def unpredicted(_: Running, seen: LengthBelief | None) -> LengthBelief:
        return seen or LengthBelief(float(LONGEST), math.inf)

    def ordered(order: FinishTogether, state: PipelineState) -> None:
        apply(order, state)
        order.tokens_per_round = 0.0

    apply = FinishTogether.apply
    if system == "auto admitting without lengths":
        with patch.object(admission, "belief_of", unpredicted):
            yield
    elif system == "auto sizing steps without lengths":
        with patch.object(FinishTogether, "apply", ordered):
            yield
    else:
        yield


def four_l20(profile: Path | None) -> PipelineSpec:
    """What all this runs on: Llama2-13B on four L20. profile: measured times."""
    measured = read_profile(profile) if profile else None
    return PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, measured, LONGEST)


def measure(draws: list[Draw], systems: list[str], kinds: list[str], profile: Path | None) -> Any:
    """Output tokens/s by system and predictor, means over draws (one a seed); and shares."""
    spec = four_l20(profile)

    def run(system: str, first: str | None, then: str | None, seed: int) -> dict[str, float]:
        draw = draws[seed - 1]

        def told(name: str | None) -> Predict:
            return lambda requests, _: [None] * len(requests) if name is None else draw.told_by(name, seed)

        policy, knobs = (SYSTEMS | ABLATED)[system]
        refine = told(then) if then else None
        with _taken_away(system):
            result = run_offline(spec, policy, draw.workload, told(first), seed, knobs, refine=refine).result
        return {
            "output_tokens_per_s": result.output_tokens_per_s,
            "preemptions": float(result.preemptions),
            "kv_used_mean": result.kv_used_mean,
        }

    report: dict[str, Any] = {}
    for system in systems:
        rows: dict[str, Any] = {}
        for kind in kinds:
            first, then = KINDS.get(kind, (kind, None))
            runs = [run(system, first, then, seed) for seed in range(1, len(draws) + 1)]
            rows[kind] = {name: mean(one[name] for one in runs) for name in runs[0]}
            rows[kind]["by_seed"] = [one["output_tokens_per_s"] for one in runs]
            print(system, kind, rows[kind], flush=True)
        if {"none", "oracle"} <= rows.keys():
            none, oracle = (rows[kind]["output_tokens_per_s"] for kind in ("none", "oracle"))
            for row in rows.values():
                row["gain"] = row["output_tokens_per_s"] - none
                row["share of the oracle's gain"] = row["gain"] / (oracle - none) if oracle != none else None
        report[system] = rows
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("signal", type=Path, metavar="SIGNAL.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WORTH.json")
    parser.add_argument("--profile", type=Path, default=None, help="measured times")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of these and: {', '.join(ABLATED)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is known, of these")
    parser.add_argument(
        "--mix", action="append", default=[], help="a workload, by name or file; may come again"
    )
    parser.add_argument("--cut", type=int, default=0, help="of answers of a mix, tokens; 0: none")
    options = parser.parse_args()
    draws = Draws.of(options.draws, options.signal, options.requests)
    report: dict[str, Any] = {"requests": options.requests}
    for source in options.mix or ["real answers"]:
        print(source, flush=True)
        found = [
            draws.carried(source, options.cut, seed) if options.mix else draws.real(seed)
            for seed in range(1, options.seeds + 1)
        ]
        name = f"{Path(source).stem}{f', cut at {options.cut}' if options.cut else ''}"
        systems = measure(found, options.systems.split(","), options.kinds.split(","), options.profile)
        report[name] = {"quality": found[0].quality(), "systems": systems}
        options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
