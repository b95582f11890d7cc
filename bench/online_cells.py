"""Whether `auto` bears what the best tuned system does, cell by cell, at one rate each instead of by search.

    python -m bench.online_cells headline --seed 41 --seconds 60 --tune-seconds 20 --only l20/ -o results/
    python -m bench.online_cells slo --attainment 0.99 ..        # P99

In each cell the settings that are scanned for the other systems are tried in short runs near what the cell
bears; the best few of them go on, in steps of 3 %, to the highest rate at which one still attains. `auto`,
with no setting, runs there and at the rates below and above. All by the instance that fast-forwards. Every
cell is written at once to cells-STUDY.json; a run that is interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.online_goodput import ATTAINMENT
from bench.online_studies import STUDIES, Trial
from controller.scheduler.policies.catalog import Knobs
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import PRECISION, Figures, Question, likely_rate, measure
from simulator.systems import scan

RIVALS = ("padg", "hybrid", "fudg-intra", "fudg-inter")
COARSE = 1.25
"""Factor between the rates by which it is found out roughly how much a cell bears."""
ABOVE = 1.1
"""Settings are compared so far above that rate: where all attain there is nothing to compare."""
KEPT, KEPT_EACH = 4, 2
"""Settings that go on, and those of one system."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A system with its settings."""

    system: str
    knobs: Knobs

    def __str__(self) -> str:
        return f"{self.system} {', '.join(f'{name} {value}' for name, value in self.knobs.items())}"


class Cell:
    """One cluster, mix and pair of targets."""

    def __init__(self, trial: Trial, question: Question, tune_seconds: float) -> None:
        """trial: any of the cell's."""
        self.spec: ClusterSpec = trial.spec
        self._asked = question
        self._brief = replace(question, seconds=tune_seconds, least_requests=question.least_requests // 2)
        self._all = {name: [Setting(name, knobs) for knobs in scan(name, self.spec)] for name in RIVALS}

    def look(self) -> dict[str, Any]:
        """All that is found out of it."""
        rough = self._roughly()
        kept = self._best(rough * ABOVE)
        rate, seen = self._edge(rough, kept)
        best = max(seen, key=lambda one: seen[one].attainment)
        auto = {}
        for at in (rate * (1.0 - PRECISION), rate, rate * (1.0 + PRECISION)):
            auto[at] = self._run(Setting("auto", scan("auto", self.spec)[0]), self._asked, at)
        return {
            "rate": round(rate, 3),
            "best": str(best),
            "others": {str(one): round(found.attainment, 4) for one, found in seen.items()},
            "auto": {f"{at:.3f}": _brief(found) for at, found in auto.items()},
        }

    def _run(self, one: Setting, question: Question, rate: float) -> Figures:
        return measure(one.system, one.knobs, self.spec, question, rate)

    def _roughly(self) -> float:
        """A rate at which the usual setting of some system attains, and of none at COARSE times it."""
        usual = [settings[0] for settings in self._all.values() if settings]
        rate = likely_rate(self.spec, self._asked.workload)
        while not self._any(usual, rate):
            rate /= COARSE
        while self._any(usual, rate * COARSE):
            rate *= COARSE
        return rate

    def _any(self, settings: Sequence[Setting], rate: float) -> bool:
        asked = self._brief
        return any(self._run(one, asked, rate).attainment >= asked.attainment for one in settings)

    def _best(self, rate: float) -> list[Setting]:
        found: list[tuple[float, Setting]] = []
        for settings in self._all.values():
            tried = [(self._run(one, self._brief, rate).attainment, one) for one in settings]
            found += sorted(tried, key=lambda pair: -pair[0])[:KEPT_EACH]
        return [one for _, one in sorted(found, key=lambda pair: -pair[0])[:KEPT]]

    def _edge(self, rate: float, settings: Sequence[Setting]) -> tuple[float, dict[Setting, Figures]]:
        """The highest rate at which one of them attains, and what all do there."""
        seen = self._all_at(settings, rate)
        while not self._attains(seen):
            rate /= 1.0 + PRECISION
            seen = self._all_at(settings, rate)
        while self._attains(above := self._all_at(settings, rate * (1.0 + PRECISION))):
            rate *= 1.0 + PRECISION
            seen = above
        return rate, seen

    def _all_at(self, settings: Sequence[Setting], rate: float) -> dict[Setting, Figures]:
        return {one: self._run(one, self._asked, rate) for one in settings}

    def _attains(self, seen: dict[Setting, Figures]) -> bool:
        return any(found.attainment >= self._asked.attainment for found in seen.values())


def _brief(found: Figures) -> dict[str, Any]:
    return {"attainment": round(found.attainment, 4), "ttft_ms": found.ttft_ms, "tpot_ms": found.tpot_ms}


def main() -> None:
    """Look at the cells that were not looked at yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=["headline", "layouts", "slo"])
    parser.add_argument("--only", default="", help="cells that begin with this pattern")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a run")
    parser.add_argument("--tune-seconds", type=float, default=20.0, help="of the runs that choose settings")
    parser.add_argument("--attainment", type=float, default=ATTAINMENT, help="0.99: P99")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cells-{options.study}.json"
    settings = {name: getattr(options, name) for name in ("seed", "seconds", "tune_seconds", "attainment")}
    report: dict[str, Any] = {"settings": settings, "cells": {}}
    if path.exists():
        report = json.loads(path.read_text())
        if report["settings"] != settings:
            parser.error(f"{path} was made with {report['settings']}; remove it, or use the same settings")
    trials = {
        one.key.rpartition("/")[0]: one for one in STUDIES[options.study](options.seed, options.seconds)
    }
    for name, trial in trials.items():
        if not fnmatch(name, options.only + "*") or name in report["cells"]:
            continue
        asked = replace(trial.question, attainment=options.attainment)
        found = report["cells"][name] = Cell(trial, asked, options.tune_seconds).look()
        path.write_text(json.dumps(report, indent=1))
        others = max(found["others"].values())
        auto = ", ".join(f"{at} {one['attainment']:.3f}" for at, one in found["auto"].items())
        print(
            f"{name:32s} {found['rate']:8.2f} req/s  {found['best']} {others:.3f}; auto: {auto}", flush=True
        )


if __name__ == "__main__":
    main()
