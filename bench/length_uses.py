"""Which use of predicted lengths is worth what to `auto`, how good they must be, and for how many requests.

    python -m bench.length_uses DRAWS.jsonl SIGNAL.json -o docs/images/length-uses \\
        --mix sharegpt-like --mix AZURE.csv [--profile L20_LLAMA2_13B.csv]

Requests of other mixes are told what was told of real answers, as in `bench.length_worth`; all is given as a
share of the way from nothing known (0) to each length known (1), of the same requests.

* uses: one of USES knows each length and the others go by the text's predictions; and all but the order know.
  Stealing and victims go by what sequences hold and read no prediction.
* correlation: predictions that are calibrated and correlate so much with the truth (normal scores); and where
  our own predictions stand.
* requests: the same for fewer and for more of them, all there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from bench.length_worth import BY_PROMPT, Draw, Draws, four_l20
from controller.scheduler import admission, ordering
from controller.scheduler.awaited import AwaitedPrefixes
from controller.scheduler.expectation import LengthBelief, belief_of
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.sequence import Sequence as Running
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import Quantiles

USES = ("order", "sizes of steps", "memory")
"""In which order sequences start; how many tokens let memory through in a round; admission by forecast."""
CORRELATIONS = (0.3, 0.5, 0.7, 0.9)
REQUESTS, COUNTS = 2000, (500, 4000)


@contextlib.contextmanager
def knowing(lengths: Sequence[int], uses: Collection[str]) -> Iterator[None]:
    """Within it these uses know each length, whatever was predicted. lengths: of the requests, tokens."""

    def known(sequence: Running, _: LengthBelief | None) -> LengthBelief:
        return LengthBelief(float(lengths[int(sequence.sequence_id[1:])]), math.inf)

    rank = FinishTogether._rank

    def ranked(
        order: FinishTogether, fresh: list[Running], prefixes: AwaitedPrefixes, capacity_tokens: int
    ) -> None:
        paces = []
        for use in ("sizes of steps", "order"):
            with patch.object(ordering, "belief_of", known if use in uses else belief_of):
                rank(order, fresh, prefixes, capacity_tokens)
            paces.append(order.tokens_per_round)
        order.tokens_per_round = paces[0]

    with (
        patch.object(FinishTogether, "_rank", ranked),
        patch.object(admission, "belief_of", known if "memory" in uses else belief_of),
    ):
        yield


class Speeds:
    """What was measured, in a file: interrupted, the same command goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, run: Callable[[], float]) -> float:
        """Output tokens/s of a run by its name; it is run if it was not."""
        if name not in self._known:
            self._known[name] = run()
            self._path.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")
            print(name, round(self._known[name], 1), flush=True)
        return self._known[name]


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of one mix, one draw for each seed. spec: what they run on."""

    name: str
    spec: PipelineSpec
    draws: list[Draw]
    known: Speeds

    def speeds(self, kind: str, uses: Collection[str] = ()) -> list[float]:
        """Output tokens/s by seed. kind: none, or as `Draw.told_by`; uses: those that know each length."""
        what = " + ".join((self.name, kind, *uses))
        return [
            self.known.of(f"{what}, seed {seed}", partial(self._run, draw, seed, kind, uses))
            for seed, draw in enumerate(self.draws, 1)
        ]

    def share(self, kind: str, uses: Collection[str] = ()) -> dict[str, Any]:
        """Of the oracle's gain: in the mean of the seeds, which `gain` is made of, and by seed."""
        none, oracle, found = self.speeds("none"), self.speeds("oracle"), self.speeds(kind, uses)
        by_seed = [(one - no) / (best - no) for one, no, best in zip(found, none, oracle, strict=True)]
        whole = (mean(found) - mean(none)) / (mean(oracle) - mean(none))
        return {"output_tokens_per_s": mean(found), "share": whole, "by_seed": by_seed}

    def _run(self, draw: Draw, seed: int, kind: str, uses: Collection[str]) -> float:
        requests = draw.workload.requests
        told: list[Quantiles] = [None] * len(requests) if kind == "none" else draw.told_by(kind, seed)
        with knowing([one.output_tokens for one in requests], uses):
            run = run_offline(self.spec, "auto", draw.workload, lambda requests, _: told, seed)
        return run.result.output_tokens_per_s


def measure(
    draws: Draws,
    source: str,
    seeds: int,
    profile: Path | None,
    known: Speeds,
    ours: Sequence[str],
    correlations: Sequence[float],
    counts: Sequence[int],
) -> Any:
    """Of one mix. ours: predictions of real answers. counts: of requests, beside REQUESTS."""

    def mix(count: int) -> Mix:
        drawn = Draws(draws.lines, draws.known, count)
        name = f"{Path(source).stem} {count}"
        requests = [drawn.carried(source, 0, seed) for seed in range(1, seeds + 1)]
        return Mix(name, four_l20(profile), requests, known)

    one = mix(REQUESTS)
    report: dict[str, Any] = {
        "none": mean(one.speeds("none")),
        "oracle": mean(one.speeds("oracle")),
        "ours": {name: one.share(name) for name in ours},
        "known alone": {use: one.share("text", (use,)) for use in USES},
        "known but the order": one.share("text", USES[1:]),
        "correlation": {f"{rho:g}": one.share(f"correlation {rho:g}") for rho in correlations},
        "quality": [draw.quality() for draw in one.draws],
    }
    report["requests"] = {}
    for count in sorted((REQUESTS, *counts)):
        other = one if count == REQUESTS else mix(count)
        gain = mean(other.speeds("oracle")) / mean(other.speeds("none")) - 1.0
        report["requests"][str(count)] = {"gain": gain, "text": other.share("text")}
    return report


def draw_picture(report: dict[str, Any], path: Path) -> None:
    """Shares by use, by correlation, and by the number of requests."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (uses, sweep, counts) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    colours = ("#1565c0", "#ef6c00", "#2e7d32")
    for place, ((name, mix), colour) in enumerate(zip(report.items(), colours, strict=False)):
        bars = {
            "text": mix["ours"]["text"],
            **{f"text, {use} known": mix["known alone"][use] for use in USES},
            "all known but the order": mix["known but the order"],
        }
        width = 0.8 / len(report)
        at = [row + width * place for row in range(len(bars))]
        uses.barh(at, [one["share"] for one in bars.values()], width, color=colour, label=name)
        for row, one in zip(at, bars.values(), strict=True):
            uses.plot(one["by_seed"], [row] * len(one["by_seed"]), "k.", markersize=3)
        uses.set_yticks([row + 0.4 - width / 2 for row in range(len(bars))], list(bars), fontsize=7)
        by = mix["correlation"]
        sweep.plot([float(rho) for rho in by], [one["share"] for one in by.values()], "-", color=colour)
        quality = mix["quality"]
        for mark, (who, found) in zip("os^v", mix["ours"].items(), strict=False):
            told = mean(rows[who]["correlation"] for rows in quality)
            sweep.plot(told, found["share"], mark, color=colour, label=f"{who}, {name}")
        rows = mix["requests"]
        shares = [row["text"]["share"] for row in rows.values()]
        counts.plot([int(count) for count in rows], shares, "o-", color=colour, label=f"text: share, {name}")
        gains = [row["gain"] for row in rows.values()]
        counts.plot([int(count) for count in rows], gains, "x--", color=colour, label=f"oracle: gain, {name}")
    uses.invert_yaxis()
    for axes in (sweep, counts):
        axes.axhline(0.5, color="#9e9e9e", linewidth=0.8)
    uses.set_xlabel("share of what perfect lengths gain (dots: seeds)")
    sweep.set_xlabel("correlation of predicted and true length")
    sweep.set_ylabel("share")
    counts.set_xlabel("requests, all there at once")
    counts.set_xscale("log")
    for axes in (uses, sweep, counts):
        axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def main() -> None:
    """Command line; writes JSON after each mix, and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("draws", type=Path, metavar="DRAWS.jsonl")
    parser.add_argument("signal", type=Path, metavar="SIGNAL.json")
    parser.add_argument("-o", "--output", type=Path, required=True, help="without its ending")
    parser.add_argument("--profile", type=Path, default=None, help="measured times")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--ours", default="text", help=f"of: text, signal and text, siblings, {BY_PROMPT}; with commas"
    )
    parser.add_argument("--correlations", type=float, nargs="*", default=CORRELATIONS)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS, help=f"beside {REQUESTS}")
    parser.add_argument("--mix", action="append", required=True, help="a workload, by name or file")
    options = parser.parse_args()
    draws = Draws.of(options.draws, options.signal, REQUESTS)
    known = Speeds(options.output.with_suffix(".runs.json"))
    report = {}
    for source in options.mix:
        report[Path(source).stem] = measure(
            draws,
            source,
            options.seeds,
            options.profile,
            known,
            options.ours.split(","),
            options.correlations,
            options.counts,
        )
        options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw_picture(report, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
