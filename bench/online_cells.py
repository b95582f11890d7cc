"""How much `auto` bears beside the best tuned system, cell by cell, near what the cell bears at all.

    python -m bench.online_cells headline --seed 41 --seconds 60 --only l20/ -o results/
    python -m bench.online_cells slo --attainment 0.99 ..        # P99

In each cell every system but `auto` is tuned, a little above what it bears with its usual setting: one knob
after the other is followed, value by value, as long as more requests meet their targets (`climb`); and again
above what it bears then, until nothing is better. For these settings, and for `auto` with none, the highest
rate is looked for at which the wanted share meets both targets, in steps of 2 % from where the system before
had it. A disaggregated system is looked at so only if it has a chance to be the best. All runs are of one
length (shorter ones begin empty for more of their time), by the instance that fast-forwards. Every cell is
written at once to cells-STUDY.json; a run that is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.online_goodput import ATTAINMENT
from bench.online_pictures import pyplot
from bench.online_studies import STUDIES, Trial, layouts_of
from controller.scheduler.policies.catalog import Knobs
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Figures, Question, likely_rate, measure
from simulator.layouts import Fleet, Layout
from simulator.planner import likeliest_layout
from simulator.systems import scan

ALWAYS, IF_AHEAD = ("padg", "hybrid"), ("fudg-intra", "fudg-inter")
"""Systems that are tuned; the latter go on only if they nearly attain at what is the best so far."""
UNPLANNED = "auto, as given"
"""`auto` in the layout that the study gives, where the planner would take another one."""
AUTO = ("auto", UNPLANNED)
INSTANCES = "instances"
"""A knob of all, in cells with several layouts of the same devices."""
STEP = 1.02
"""Factor between the rates that are told apart."""
COARSE = 6
"""Steps between the rates by which it is found out roughly what a system bears."""
ABOVE = 4
"""Steps above that, where settings are compared: where all attain there is nothing to compare."""
NEARLY = 0.15
"""Of the requests, that may be short of the wanted share."""
LEAST_S = 12.0


def climb(best: Knobs, settings: list[Knobs], share: Callable[[Knobs], float]) -> Knobs:
    """The best of the settings that were tried: from one on, each knob in turn is moved to its next value,
    either way, as long as the share rises."""
    for knob in best:
        values = sorted({one[knob] for one in settings}, key=lambda value: (str(type(value)), value))
        for way in (1, -1):
            at = values.index(best[knob]) + way
            while 0 <= at < len(values):
                other = {**best, knob: values[at]}
                if other not in settings or share(other) <= share(best):
                    break
                best, at = other, at + way
    return best


def highest(attains: Callable[[int], bool], begin: int) -> int:
    """The last step at which it attains, if there is one: in growing strides from `begin`, then halved."""
    good, stride = begin, 1
    up = attains(begin)
    bad = begin
    while up == attains(at := begin + (stride if up else -stride)):
        good, bad = (at, bad) if up else (good, at)
        stride *= 2
    good, bad = (good, at) if up else (at, bad)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if attains(middle) else (good, middle)
    return good


@dataclass(frozen=True, slots=True)
class Found:
    """What a system bears in a cell. step: None: less than others."""

    knobs: Knobs
    step: int | None


class Cell:
    """One cluster, mix and pair of targets."""

    def __init__(
        self, trial: Trial, question: Question, most: int, layouts: list[ClusterSpec] | None = None
    ) -> None:
        """trial: any of the cell's. most: requests of a run at most, but it has LEAST_S in any
        case. layouts: of the same devices, the trial's first; none: that alone."""
        self._layouts = layouts or [trial.spec]
        self._asked = question
        self._most = most
        self._base = likely_rate(trial.spec, question.workload)
        self._seen: dict[tuple[str, str], dict[int, Figures]] = {}

    def look(self) -> dict[str, Any]:
        """All that is found out of it."""
        began = time.process_time()
        found: dict[str, Found] = {}
        for name in (*ALWAYS, *IF_AHEAD):
            if one := self._tuned(name, _best(found), must_win=name in IF_AHEAD):
                found[name] = one
        for name, spec in (("auto", self._planned()), (UNPLANNED, self._layouts[0])):
            knobs = self._in_layout(scan("auto", spec)[0], spec)
            attains = lambda step: self._attains("auto", knobs, step)  # noqa: B023, E731
            found[name] = Found(knobs, highest(attains, _best(found)))
            if spec is self._layouts[0]:
                break
        return {
            "goodput": {name: self._rate(one.step) for name, one in found.items() if one.step is not None},
            "systems": {name: self._told(name, one) for name, one in found.items()},
            "cpu_s": round(time.process_time() - began, 1),
        }

    def _planned(self) -> ClusterSpec:
        """The layout that `tidepipe plan` would look at first."""
        some = self._layouts[0]
        nodes = some.devices // some.node_devices
        fleet = Fleet(some.shape, some.hardware, nodes, some.node_devices, max_total=some.max_total)
        layouts = {Layout(one.stages, one.tensor): one for one in self._layouts}
        return layouts[likeliest_layout(fleet, self._asked, "auto", [*layouts])]

    def _in_layout(self, knobs: Knobs, spec: ClusterSpec) -> Knobs:
        return {**knobs, INSTANCES: spec.instances} if len(self._layouts) > 1 else knobs

    def _settings(self, name: str) -> list[Knobs]:
        return [self._in_layout(knobs, spec) for spec in self._layouts for knobs in scan(name, spec)]

    def _told(self, name: str, one: Found) -> dict[str, Any]:
        seen = self._seen[_system(name), json.dumps(one.knobs, sort_keys=True)]
        shares = {str(self._rate(step)): round(here.attainment, 4) for step, here in sorted(seen.items())}
        there = {}
        if one.step is not None:
            there = {"ttft_ms": seen[one.step].ttft_ms, "tpot_ms": seen[one.step].tpot_ms}
        return {"knobs": dict(one.knobs), "shares": shares, **there}

    def _rate(self, step: int) -> float:
        return float(f"{self._base * STEP**step:.4g}")

    def _figures(self, name: str, knobs: Knobs, step: int) -> Figures:
        key = _system(name), json.dumps(knobs, sort_keys=True)
        seen = self._seen.setdefault(key, {})
        if step not in seen:
            rate, asked = self._rate(step), self._asked
            seconds = min(asked.seconds, max(LEAST_S, self._most / rate))
            here = {knob: value for knob, value in knobs.items() if knob != INSTANCES}
            layouts = {one.instances: one for one in self._layouts}
            spec = layouts[int(knobs.get(INSTANCES, self._layouts[0].instances))]
            seen[step] = measure(_system(name), here, spec, replace(asked, seconds=seconds), rate)
        return seen[step]

    def _share(self, name: str, knobs: Knobs, step: int) -> float:
        return self._figures(name, knobs, step).attainment

    def _attains(self, name: str, knobs: Knobs, step: int) -> bool:
        return self._share(name, knobs, step) >= self._asked.attainment

    def _tuned(self, name: str, begin: int, *, must_win: bool) -> Found | None:
        """begin: the best so far."""
        settings = self._settings(name)
        if not settings:
            return None
        rough, usual = begin, settings[0]
        if self._attains(name, usual, begin):
            must_win = False
        if not must_win:
            attains = lambda at: self._attains(name, usual, COARSE * at)  # noqa: E731
            rough = COARSE * highest(attains, round(begin / COARSE)) + ABOVE
        knobs = climb(usual, settings, lambda one: self._share(name, one, rough))
        if must_win and self._share(name, knobs, rough) < self._asked.attainment - NEARLY:
            return Found(knobs, None)
        while True:
            step = highest(lambda at: self._attains(name, knobs, at), rough)  # noqa: B023
            # Where all are in time there is nothing to compare: once more, above what it bears now.
            better = climb(knobs, settings, lambda one: self._share(name, one, step + ABOVE))  # noqa: B023
            if better == knobs:
                return Found(knobs, step)
            knobs, rough = better, step


def _system(name: str) -> str:
    """What is run under that name."""
    return "auto" if name in AUTO else name


def _best(found: Mapping[str, Found]) -> int:
    return max((one.step for one in found.values() if one.step is not None), default=0)


def ratios(goodput: Mapping[str, float]) -> dict[str, float]:
    """`auto` over each other system, and over the best of them (`best`)."""
    others = {name: rate for name, rate in goodput.items() if name not in AUTO}
    over = {name: goodput["auto"] / rate for name, rate in others.items()}
    return {**over, "best": goodput["auto"] / max(others.values())}


def print_table(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Markdown: goodput, settings that were best, and ratios."""
    names = (*AUTO, *ALWAYS, *IF_AHEAD)
    print(f"| cell | {' | '.join(names)} | auto over the best |\n|---|{'---|' * (len(names) + 1)}")
    for cell, found in cells.items():
        values = []
        for name in names:
            rate, knobs = found["goodput"].get(name), found["systems"].get(name, {}).get("knobs", {})
            told = [str(value) for knob, value in knobs.items() if name not in AUTO or knob == INSTANCES]
            which = f" ({', '.join(told)})" if told else ""
            values.append("" if rate is None else f"{rate:.4g}{which}")
        print(f"| {cell} | {' | '.join(values)} | {ratios(found['goodput'])['best']:.2f} |")
    for name in (*ALWAYS, "best"):
        over = [
            ratios(found["goodput"])[name] for found in cells.values() if name in ratios(found["goodput"])
        ]
        mean = math.exp(sum(map(math.log, over)) / len(over))
        least = min(over)
        print(f"auto over {name}: geometric mean {mean:.3f}, least {least:.3f}, of {len(over)} cells")


def draw(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """`auto` over the others, a row of points per cell."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.24 * len(cells)), layout="constrained")
    places = range(len(cells))
    for name, marker in (*zip((*ALWAYS, *IF_AHEAD), "s^v<", strict=True), ("best", "o")):
        over = [ratios(found["goodput"]).get(name, math.nan) for found in cells.values()]
        axes.plot(
            over,
            places,
            marker,
            label=f"over {name}",
            ms=8 if name == "best" else 5,
            mfc="none" if name == "best" else None,
        )
    axes.axvline(1.0, color="black", lw=0.6)
    axes.set_yticks(places, list(cells), fontsize="small")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="goodput of auto, which nobody tunes, over that of tuned systems")
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Look at the cells that were not looked at yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=["headline", "layouts", "slo"])
    parser.add_argument("--only", default="", help="cells that begin with this pattern; several: with commas")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a run")
    parser.add_argument("--most", type=int, default=4000, help="requests of a run, as far as it has 12 s")
    parser.add_argument("--attainment", type=float, default=ATTAINMENT, help="0.99: P99")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cells-{options.study}.json"
    settings = {name: getattr(options, name) for name in ("seed", "seconds", "most", "attainment")}
    report: dict[str, Any] = {"settings": settings, "cells": {}}
    if path.exists():
        report = json.loads(path.read_text())
        if report["settings"] != settings:
            parser.error(f"{path} was made with {report['settings']}; remove it, or use the same settings")
    trials = {
        one.key.rpartition("/")[0]: one for one in STUDIES[options.study](options.seed, options.seconds)
    }
    for pattern in options.only.split(","):
        for name, trial in trials.items():
            if not fnmatch(name, pattern + "*") or name in report["cells"]:
                continue
            asked = replace(trial.question, attainment=options.attainment)
            layouts = None
            if options.study == "headline":
                device, model, _ = name.split("/")
                layouts = layouts_of(device, model)
            found = report["cells"][name] = Cell(trial, asked, options.most, layouts).look()
            path.write_text(json.dumps(report, indent=1))
            over = ", ".join(f"{other} {ratio:.2f}" for other, ratio in ratios(found["goodput"]).items())
            print(
                f"{name:32s} auto {found['goodput']['auto']:.4g} req/s; over {over}; {found['cpu_s']} s",
                flush=True,
            )
    if report["cells"]:
        print_table(report["cells"])
        draw(report["cells"], options.out / f"online-cells-{options.study}.png")


if __name__ == "__main__":
    main()
