"""Goodput of all systems in virtual time: headline, layouts, slo, burst, instances, ablation, engines, apart.

    python -m bench.online_goodput headline -o results/          # or another one of these
    python -m bench.online_goodput apart --attainment 0.99 ..    # P99

Every finished trial is written at once; a run that is interrupted goes on where it was. Writes
online-STUDY.json; `python -m bench.online_pictures results/ -o docs/images` draws it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.online_studies import STUDIES, Trial
from simulator.goodput import Goodput, confirmed, goodput, tuned_goodput
from simulator.systems import never_skips, run_exactly

ATTAINMENT = 0.9
"""Share of the requests that must meet both targets, as usual."""


def measure(trial: Trial, precision: float, *, tune_seconds: float, fast: bool) -> Goodput:
    """One trial, confirmed by the controllers' own scheduler (but for systems that have none).

    tune_seconds: length of the runs by which settings are chosen; 0: as all. fast: without confirmation.
    """
    knobs, asked = trial.knobs, trial.question
    if knobs is None and tune_seconds:
        brief = replace(asked, seconds=tune_seconds)
        knobs = tuned_goodput(trial.system, trial.spec, brief, precision=precision).knobs or None
    if knobs is None:
        found = tuned_goodput(trial.system, trial.spec, asked, precision=precision)
    else:
        found = goodput(trial.system, knobs, trial.spec, asked, precision=precision)
    if fast or trial.system.startswith("fudg-") or never_skips(trial.system, trial.spec):
        return found
    return confirmed(found, trial.spec, asked, run_exactly)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a report was made with, as far as it is not as usual."""
    settings = {"seed": options.seed, "seconds": options.seconds, "precision": options.precision}
    if options.attainment != ATTAINMENT:
        settings["attainment"] = options.attainment
    if options.tune_seconds:
        settings["tune_seconds"] = options.tune_seconds
    if options.knobs_of:
        settings["knobs_of"] = options.knobs_of.name
    return settings | ({"fast": True} if options.fast else {})


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--only", default="", help="keys that begin with this; end it with $ for one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of a run")
    parser.add_argument("--precision", type=float, default=0.03)
    parser.add_argument("--attainment", type=float, default=ATTAINMENT, help="0.99: P99")
    parser.add_argument(
        "--tune-seconds", type=float, default=0.0, help="runs that choose settings; 0: as all"
    )
    parser.add_argument("--knobs-of", type=Path, metavar="FILE", help="settings as another report chose them")
    parser.add_argument("--fast", action="store_true", help="do not confirm by the controllers' scheduler")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"online-{options.study}.json"
    settings = settings_of(options)
    chosen = json.loads(options.knobs_of.read_text())["trials"] if options.knobs_of else {}
    report: dict[str, Any] = {"settings": settings, "trials": {}}
    if path.exists():
        report = json.loads(path.read_text())
        if report["settings"] != settings:
            parser.error(f"{path} was made with {report['settings']}; remove it, or use the same settings")
    for trial in STUDIES[options.study](options.seed, options.seconds):
        if not (trial.key + "$").startswith(options.only):
            continue
        if trial.key not in report["trials"]:
            asked = replace(trial.question, attainment=options.attainment)
            knobs = chosen[trial.key]["knobs"] if trial.key in chosen else trial.knobs
            asked_trial = replace(trial, question=asked, knobs=knobs)
            found = measure(
                asked_trial, options.precision, tune_seconds=options.tune_seconds, fast=options.fast
            )
            report["trials"][trial.key] = {
                "system": found.system,
                "knobs": dict(found.knobs),
                "goodput_rps": round(found.rps, 3),
                "runs": found.runs,
                "figures": asdict(found.figures) if found.figures else None,
            }
            path.write_text(json.dumps(report, indent=1))
            print(f"{trial.key:55s} {found.rps:8.2f} req/s  {dict(found.knobs)}", flush=True)


if __name__ == "__main__":
    main()
