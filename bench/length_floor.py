"""The floor: how well could any predictor that sees the prompt know the length of one of its answers?

    python -m bench.length_draws PROMPTS.jsonl -o DRAWS.jsonl --model smollm2-135m
    python -m bench.length_floor DRAWS.jsonl PROMPTS.jsonl -o docs/images/length-floor

Answers to one prompt differ. What is best said of a new one, knowing only the prompt, are the quantiles of
the prompt's own distribution; their mean loss is the least that there is. Several answers a prompt bound it.
Quantiles of an answer's siblings, without itself, lose more, as they are estimates (answers to other prompts
are mixed in as far as that helps); quantiles of all of them lose less, as they have seen the answer. Both
errors fade as 1 / answers, which gives a value between (`floor`): extrapolated from all siblings and half of
them, held within the two.

Our predictor is trained on other prompts (folds by prompt) and on the lengths of bench/data, one answer to
each of the prompts that were not drawn. `share` is where it stands between the quantiles of all answers,
whatever the prompt (0), and the floor (1). Intervals: bootstrap over prompts, 90 %.
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
PARTS = 40
MIXED = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)
LENGTHS = Path(__file__).parent / "data" / "smollm2-135m-lengths.csv"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt and its answers at one temperature. line: as `bench.length_draws` wrote it."""

    line: dict[str, Any]
    lengths: Floats

    @property
    def source(self) -> str:
        return str(self.line["source"])

    def observations(self) -> list[Observation]:
        """Its answers, to learn from or to judge by."""
        return [
            observation(
                {
                    **{
                        name: self.line[name]
                        for name in ("prompt", "prompt_tokens", "max_tokens", "temperature")
                    },
                    "output_tokens": int(length),
                    "finish_reason": "length" if cut else "stop",
                }
            )
            for length, cut in zip(self.lengths, self.line["capped"], strict=True)
        ]


def losses(lengths: Floats, quantiles: Floats) -> Floats:
    """(4,) mean of NAMES. lengths: (n,); quantiles: (n, LEVELS) or (LEVELS,)."""
    found = pinball(lengths, np.broadcast_to(quantiles, (len(lengths), len(LEVELS))), np.array(LEVELS))
    by_level = found.mean(axis=0)
    return _with_mean(np.array([2.0 * by_level[0], by_level[1], by_level[2]]))


def _with_mean(found: Floats) -> Floats:
    """(.., 3) losses of the levels; (.., NAMES) with their mean."""
    mean = (0.5 * found[..., 0] + found[..., 1] + found[..., 2]) / len(LEVELS)
    return np.concatenate([found, mean[..., None]], axis=-1)


def in_sample(lengths: Floats) -> Floats:
    """Losses of the answers' own quantiles: less than can be known."""
    return losses(lengths, np.quantile(lengths, LEVELS, method="inverted_cdf"))


def left_out(lengths: Floats, pool: Floats, siblings: int, chance: np.random.Generator) -> Floats:
    """(MIXED, NAMES) losses of answers that are predicted by so many others to their prompt.

    pool: (tokens,) distribution function of the answers to all other prompts of the source. Few siblings
    say little of tails; mixing the pool in, by MIXED, is what whoever had only them would do.
    """
    count, grid = len(lengths), np.arange(len(pool))
    if siblings == count - 1:
        chosen = [(one, np.delete(np.arange(count), one)) for one in range(count)]
    else:
        order = [chance.permutation(count)[: siblings + 1] for _ in range(PARTS)]
        chosen = [(int(one[0]), one[1:]) for one in order]
    held = lengths[[one for one, _ in chosen]]
    own = np.stack([(lengths[others][:, None] <= grid).mean(axis=0) for _, others in chosen])
    found = []
    for mixed in MIXED:
        mixture = mixed * pool + (1.0 - mixed) * own
        quantiles = np.stack([(mixture < level - 1e-9).sum(axis=1) for level in LEVELS], axis=1)
        found.append(losses(held, quantiles.astype(np.float64)))
    return np.array(found)


def floors(prompts: list[Drawn], seed: int) -> dict[str, Floats]:
    """Of each prompt, (prompts, NAMES): `upper`, `lower`, and `half`: the upper one of half of the siblings.

    What is mixed in is chosen for all prompts of a source together, for each loss and number of siblings.
    """
    chance = np.random.default_rng(seed)
    most = int(max(one.lengths.max() for one in prompts))
    found = {name: np.empty((len(prompts), len(NAMES))) for name in ("upper", "half", "lower")}
    for source in {one.source for one in prompts}:
        places = [place for place, one in enumerate(prompts) if one.source == source]
        counts = [np.bincount(prompts[place].lengths.astype(int), minlength=most + 1) for place in places]
        total = np.sum(counts, axis=0)
        for name in ("upper", "half"):
            tried = []
            for place, own in zip(places, counts, strict=True):
                lengths, others = prompts[place].lengths, np.cumsum(total - own)
                siblings = len(lengths) - 1 if name == "upper" else (len(lengths) - 1) // 2
                tried.append(left_out(lengths, others / max(others[-1], 1), siblings, chance))
            best = np.mean(tried, axis=0).argmin(axis=0)[: len(LEVELS)]
            found[name][places] = _with_mean(np.array(tried)[:, best, np.arange(len(LEVELS))])
        found["lower"][places] = [in_sample(prompts[place].lengths) for place in places]
    return found


def floor_of(bounds: dict[str, Floats], sizes: Floats) -> Floats:
    """(NAMES,) where the upper bound goes with ever more siblings: it falls by c / siblings."""
    upper, half = bounds["upper"].mean(axis=0), bounds["half"].mean(axis=0)
    many, few = np.mean(1.0 / (sizes - 1.0)), np.mean(1.0 / ((sizes - 1.0) // 2))
    ahead = upper - (half - upper) * many / (few - many)
    held = np.clip(ahead, bounds["lower"].mean(axis=0), upper)
    return _with_mean(held[: len(LEVELS)])


def variance(drawn_lengths: list[Floats]) -> dict[str, float]:
    """One-way analysis of variance, in tokens: standard deviations within and between prompts, and the
    share of the variance that lies between."""
    within = float(np.mean([one.var(ddof=1) for one in drawn_lengths]))
    means = np.array([one.mean() for one in drawn_lengths])
    noise = float(np.mean([one.var(ddof=1) / len(one) for one in drawn_lengths]))
    between = max(0.0, float(means.var(ddof=1)) - noise)
    return {
        "within_sd": within**0.5,
        "between_sd": between**0.5,
        "share_between": between / (between + within),
    }


def predicted(prompts: list[Drawn], single: list[Observation], seed: int) -> Floats:
    """(prompts, LEVELS) tokens, by models that have seen no answer to the prompt, at any temperature."""
    ids = sorted({str(one.line["id"]) for one in prompts})
    chance = np.random.default_rng(seed)
    fold_of = dict(zip(ids, (chance.permutation(len(ids)) % FOLDS).tolist(), strict=True))
    fold = np.array([fold_of[str(one.line["id"])] for one in prompts])
    found = np.empty((len(prompts), len(LEVELS)))
    for held in range(FOLDS):
        known = [*single]
        for one, side in zip(prompts, fold, strict=True):
            known += one.observations() if side != held else []
        model = fit([known[place] for place in chance.permutation(len(known))], "hazard/1").model
        places = np.flatnonzero(fold == held)
        found[places] = model.quantiles(
            [prompts[place].observations()[0].features for place in places], LEVELS
        )
    return found


def compared(prompts: list[Drawn], quantiles: Floats, everyone: list[Drawn], seed: int) -> dict[str, Any]:
    """Everything of some prompts; the plain quantile is that of `everyone`, with which they came."""
    lengths = [one.lengths for one in prompts]
    sizes = np.array([float(len(one)) for one in lengths])
    of_all = np.quantile(np.concatenate([one.lengths for one in everyone]), LEVELS)
    of_source = np.quantile(np.concatenate(lengths), LEVELS)
    table = {
        "plain quantile": np.array([losses(one, of_all) for one in lengths]),
        "quantile of the source": np.array([losses(one, of_source) for one in lengths]),
        "ours": np.array([losses(one, row) for one, row in zip(lengths, quantiles, strict=True)]),
    }
    bounds = floors(prompts, seed)

    def reckoned(chosen: Any) -> dict[str, Floats]:
        means = {name: rows[chosen].mean(axis=0) for name, rows in table.items()}
        parts = {name: rows[chosen] for name, rows in bounds.items()}
        floor = floor_of(parts, sizes[chosen])
        gap = means["plain quantile"] - np.array(
            [floor, parts["upper"].mean(axis=0), parts["lower"].mean(axis=0)]
        )
        gain = means["plain quantile"] - means["ours"]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = gain / np.where(gap > 0.0, gap, np.nan)
        means |= {"floor": floor, "floor, at most": parts["upper"].mean(axis=0)}
        means |= {"floor, at least": parts["lower"].mean(axis=0), "share": shares[0]}
        return means | {"share, floor at most": shares[1], "share, floor at least": shares[2]}

    chance = np.random.default_rng(seed)
    whole = reckoned(np.arange(len(prompts)))
    again = [reckoned(chance.integers(len(prompts), size=len(prompts))) for _ in range(RESAMPLES)]
    rows = {}
    for name, values in whole.items():
        ends = np.nanquantile(np.array([one[name] for one in again]), INTERVAL, axis=0)
        rows[name] = {
            loss: {"value": float(values[place]), "from": float(ends[0, place]), "to": float(ends[1, place])}
            for place, loss in enumerate(NAMES)
        }
    return {
        "prompts": len(prompts),
        "answers": int(sizes.sum()),
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


def measure(lines: list[dict[str, Any]], prompts_file: Path, lengths: Path, seed: int) -> dict[str, Any]:
    """By temperature, all sources together and each."""
    drawn_ids = {line["id"] for line in lines}
    prompts = [Drawn(line, np.array(line["lengths"], dtype=np.float64)) for line in lines]
    single = [observation(one) for one in joined(prompts_file, lengths) if one["id"] not in drawn_ids]
    quantiles = predicted(prompts, single, seed)
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
    options = parser.parse_args()
    lines = [line for line in drawn(options.draws) if len(line["lengths"]) > 2]
    report = measure(lines, options.prompts, options.lengths, options.seed)
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw_picture(report, options.output.with_suffix(".png"))
    print(table_of(report))


if __name__ == "__main__":
    main()
