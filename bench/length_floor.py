"""The floor: how well could any predictor that sees the prompt know the length of one of its answers?

    python -m bench.length_draws PROMPTS.jsonl -o DRAWS.jsonl --model smollm2-135m --quantization int8
    python -m bench.length_floor DRAWS.jsonl PROMPTS.jsonl -o docs/images/length-floor

Bounds of the floor, and a value between, come from answers to the same prompt
(`predictor/evaluation/floor.py`). The draws of docs/results are `bench/data/smollm2-135m-draws.jsonl`;
PROMPTS.jsonl has the prompts.

Our predictor is trained on other prompts (folds by prompt) and on the lengths of bench/data, one answer to
each of the prompts that were not drawn. `share` is where it stands between the quantiles of all answers,
whatever the prompt (0), and the floor (1). Intervals: bootstrap over prompts, 90 %.

With --ended K each prompt is of a caller of its own, such as an application that asks the same again and
again, and K of its answers have ended when the next ones are predicted: the most that history can tell.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.length_draws import drawn
from bench.predictor_data import joined
from predictor.evaluation.figures import pinball
from predictor.evaluation.floor import LEAST_SIBLINGS, floor_bounds, variance
from predictor.training.dataset import observation
from predictor.training.fit import fit
from tidepipe_common.lengths.distribution import Floats
from tidepipe_common.lengths.request import Observation

LEVELS = (0.5, 0.9, 0.99)
NAMES = ("mae", "pinball_p90", "pinball_p99", "pinball")
"""Losses: twice the pinball loss at P50, those at P90 and P99, and the mean of the three pinball losses."""
FOLDS = 5
RESAMPLES = 2000
INTERVAL = (0.05, 0.95)
LEAST_ROOM = 0.05
"""Of the plain quantile's loss: where less could be known, there is no share of it."""
LENGTHS = Path(__file__).parent / "data" / "smollm2-135m-lengths.csv"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt and its answers at one temperature. line: as `bench.length_draws` wrote it."""

    line: dict[str, Any]
    lengths: Floats

    @property
    def source(self) -> str:
        return str(self.line["source"])

    def behind(self, count: int) -> Drawn:
        """Without the first answers."""
        return Drawn({**self.line, "capped": self.line["capped"][count:]}, self.lengths[count:])

    def observations(self) -> list[Observation]:
        """Its answers, to learn from or to judge by."""
        return [
            observation(
                {
                    **{
                        name: self.line[name]
                        for name in ("prompt", "prompt_tokens", "max_tokens", "temperature")
                    },
                    "client": self.line.get("client", ""),
                    "output_tokens": int(length),
                    "finish_reason": "length" if cut else "stop",
                }
            )
            for length, cut in zip(self.lengths, self.line["capped"], strict=True)
        ]


def other_answers(
    prompts: Path, lengths: Path, lines: list[dict[str, Any]], *, sources_as_clients: bool = False
) -> list[Observation]:
    """One answer to each of the prompts that were not drawn."""
    drawn_ids = {line["id"] for line in lines}
    return [
        observation({**one, "client": one["source"] if sources_as_clients else ""})
        for one in joined(prompts, lengths)
        if one["id"] not in drawn_ids
    ]


def with_prompts(lines: list[dict[str, Any]], prompts: Path) -> list[dict[str, Any]]:
    """Drawn lines with their prompts."""
    with prompts.open(encoding="utf-8") as source:
        texts = {line["id"]: line["prompt"] for line in map(json.loads, source)}
    return [{**line, "prompt": texts[line["id"]]} for line in lines]


def losses(lengths: Floats, quantiles: Floats) -> Floats:
    """(NAMES,) means. lengths: (n,); quantiles: (LEVELS,)."""
    everywhere = np.broadcast_to(quantiles, (len(lengths), len(LEVELS)))
    return named(pinball(lengths, everywhere, np.array(LEVELS)).mean(axis=0))


def named(found: Floats) -> Floats:
    """(NAMES,) from the pinball losses of LEVELS."""
    return np.array([2.0 * found[0], found[1], found[2], found.mean()])


def predicted(
    prompts: list[Drawn],
    single: list[Observation],
    seed: int,
    ended: int = 0,
    answers: int | None = None,
) -> Floats:
    """(prompts, LEVELS) tokens, by models that were trained on no answer to the prompt, at any temperature.

    ended: answers of each prompt that count as its caller's newest. answers: of each to learn from, at most.
    """
    ids = sorted({str(one.line["id"]) for one in prompts})
    chance = np.random.default_rng(seed)
    fold_of = dict(zip(ids, (chance.permutation(len(ids)) % FOLDS).tolist(), strict=True))
    fold = np.array([fold_of[str(one.line["id"])] for one in prompts])
    found = np.empty((len(prompts), len(LEVELS)))
    for held in range(FOLDS):
        known = [*single]
        for one, side in zip(prompts, fold, strict=True):
            known += one.observations()[:answers] if side != held else []
        model = fit([known[place] for place in chance.permutation(len(known))], "hazard/1").model
        places = np.flatnonzero(fold == held)
        for place in places:
            for answer in prompts[place].observations()[:ended]:
                model.recent.note(answer)
        found[places] = model.quantiles(
            [prompts[place].observations()[0].features for place in places], LEVELS
        )
    return found


def compared(prompts: list[Drawn], quantiles: Floats, everyone: list[Drawn], seed: int) -> dict[str, Any]:
    """Everything of some prompts; the plain quantile is that of `everyone`, with which they came."""
    lengths = [one.lengths for one in prompts]
    of_all = np.quantile(np.concatenate([one.lengths for one in everyone]), LEVELS)
    of_source = np.quantile(np.concatenate(lengths), LEVELS)
    table = {
        "plain quantile": np.array([losses(one, of_all) for one in lengths]),
        "quantile of the source": np.array([losses(one, of_source) for one in lengths]),
        "ours": np.array([losses(one, row) for one, row in zip(lengths, quantiles, strict=True)]),
    }
    bounds = floor_bounds(lengths, [one.source for one in prompts], LEVELS, seed)

    def reckoned(chosen: Any) -> dict[str, Floats]:
        means = {name: rows[chosen].mean(axis=0) for name, rows in table.items()}
        part = bounds.of(chosen)
        floors = np.array([named(part.floor), named(part.most), named(part.least)])
        gap = means["plain quantile"] - floors
        gain = means["plain quantile"] - means["ours"]
        room = gap > LEAST_ROOM * means["plain quantile"]
        shares = np.where(room, gain / np.where(room, gap, 1.0), np.nan)
        for place, name in enumerate(("floor", "floor, at most", "floor, at least")):
            means[name] = floors[place]
        return means | {
            "share": shares[0],
            "share, floor at most": shares[1],
            "share, floor at least": shares[2],
        }

    chance = np.random.default_rng(seed)
    whole = reckoned(np.arange(len(prompts)))
    again = [reckoned(chance.integers(len(prompts), size=len(prompts))) for _ in range(RESAMPLES)]
    rows: dict[str, dict[str, Any]] = {}
    for name, values in whole.items():
        rows[name] = {}
        for place, loss in enumerate(NAMES):
            if np.isnan(values[place]):
                rows[name][loss] = None
                continue
            low, high = np.nanquantile([one[name][place] for one in again], INTERVAL)
            rows[name][loss] = {"value": float(values[place]), "from": float(low), "to": float(high)}
    return {
        "prompts": len(prompts),
        "answers": sum(map(len, lengths)),
        "mean": float(np.concatenate(lengths).mean()),
        "capped": float(np.mean(np.concatenate([one.line["capped"] for one in prompts]))),
        **variance(lengths),
        "covers": {
            f"p{100 * level:g}": float(
                np.mean(
                    np.concatenate([one <= row[place] for one, row in zip(lengths, quantiles, strict=True)])
                )
            )
            for place, level in enumerate(LEVELS)
        },
        "losses": rows,
    }


def measure(
    lines: list[dict[str, Any]],
    single: list[Observation],
    seed: int,
    ended: int = 0,
    answers: int | None = None,
) -> dict[str, Any]:
    """By temperature, all sources together and each. single: answers to other prompts, learned from too.

    ended, answers: see `predicted`; those that ended are not judged.
    """
    prompts = [Drawn(line, np.array(line["lengths"], dtype=np.float64)) for line in lines]
    quantiles = predicted(prompts, single, seed, ended, answers)
    prompts = [one.behind(ended) for one in prompts]
    report: dict[str, Any] = {"trained_on_single_answers": len(single), "temperatures": {}}
    for temperature in sorted({float(line["temperature"]) for line in lines}, reverse=True):
        chosen = [place for place, one in enumerate(prompts) if one.line["temperature"] == temperature]
        everyone = [prompts[place] for place in chosen]
        found = {"all": compared(everyone, quantiles[chosen], everyone, seed)}
        for source in sorted({one.source for one in everyone}):
            places = [place for place in chosen if prompts[place].source == source]
            found[source] = compared([prompts[place] for place in places], quantiles[places], everyone, seed)
        report["temperatures"][f"{temperature:g}"] = found
    return report


def table_of(report: dict[str, Any]) -> str:
    """Markdown: one row for each temperature and source."""
    head = (
        "T | prompts | source | share of variance between | plain | floor (least..most) | ours | share (90 %)"
    )
    rows = [f"| {head} |", "|---" * 8 + "|"]
    for temperature, sources in report["temperatures"].items():
        for source, found in sources.items():
            for loss in ("mae", "pinball"):
                of = {name: row[loss] for name, row in found["losses"].items()}
                rows.append(
                    f"| {temperature} | {found['prompts']} | {source}, {loss} | {found['share_between']:.2f} "
                    f"| {of['plain quantile']['value']:.1f} | {of['floor']['value']:.1f} "
                    f"({of['floor, at least']['value']:.1f}..{of['floor, at most']['value']:.1f}) "
                    f"| {of['ours']['value']:.1f} "
                    f"| {of['share']['value']:.2f} ({of['share']['from']:.2f} to {of['share']['to']:.2f}) |"
                )
    return "\n".join(rows)


def draw_picture(report: dict[str, Any], path: Path) -> None:
    """MAE by source: plain quantile, ours, and the floor between its bounds; one panel a temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    temperatures = report["temperatures"]
    figure, panels = pyplot.subplots(
        1, len(temperatures), figsize=(5.2 * len(temperatures), 3.6), sharey=True
    )
    for panel, (temperature, sources) in zip(np.atleast_1d(panels), temperatures.items(), strict=True):
        for place, found in enumerate(sources.values()):
            of = {name: row["mae"] for name, row in found["losses"].items()}
            least, most = of["floor, at least"]["value"], of["floor, at most"]["value"]
            panel.bar(place, most - least, 0.7, least, color="#cfd8dc", label="floor, between its bounds")
            panel.hlines(of["floor"]["value"], place - 0.35, place + 0.35, color="#455a64", label="floor")
            for name, mark, colour in (("plain quantile", "s", "#9e9e9e"), ("ours", "o", "#1565c0")):
                value = of[name]
                errors = [[value["value"] - value["from"]], [value["to"] - value["value"]]]
                shift = -0.12 if name == "ours" else 0.12
                panel.errorbar(place + shift, value["value"], errors, fmt=mark, color=colour, label=name)
        panel.set_xticks(range(len(sources)), [name.replace("self-instruct-", "s.-i. ") for name in sources])
        panel.set_title(f"temperature {temperature}")
    first = np.atleast_1d(panels)[0]
    first.set_ylabel("mean absolute error, tokens")
    handles, labels = first.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    first.legend(by_label.values(), by_label.keys(), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def main() -> None:
    """Command line; prints the table, writes JSON and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.jsonl")
    parser.add_argument("--lengths", type=Path, default=LENGTHS, help="one answer each, of other prompts")
    parser.add_argument("-o", "--output", type=Path, required=True, help="without its ending")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sources-as-clients", action="store_true", help="prompts of one source come from one caller"
    )
    parser.add_argument("--ended", type=int, default=0, help="answers of each prompt's caller that ended")
    parser.add_argument("--answers", type=int, default=None, help="to each prompt, to learn from; else all")
    parser.add_argument("--alone", action="store_true", help="learn from no prompts but those of DRAWS.jsonl")
    options = parser.parse_args()
    least = LEAST_SIBLINGS + options.ended
    lines = with_prompts(
        [line for line in drawn(options.draws) if len(line["lengths"]) > least], options.prompts
    )
    as_clients = options.sources_as_clients
    single = other_answers(options.prompts, options.lengths, lines, sources_as_clients=as_clients)
    caller = "source" if as_clients else "id" if options.ended else None
    lines = [{**line, "client": line[caller] if caller else ""} for line in lines]
    single = [] if options.alone else single
    report = measure(lines, single, options.seed, options.ended, options.answers)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw_picture(report, options.output.with_suffix(".png"))
    print(table_of(report))


if __name__ == "__main__":
    main()
