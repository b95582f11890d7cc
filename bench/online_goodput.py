"""Goodput of all systems in virtual time: headline, slo, burst, instances, ablation, engines.

    python -m bench.online_goodput headline -o results/        # slo, burst, instances, ablation, engines

Every finished trial is written at once; a run that is interrupted goes on where it was. Writes
online-STUDY.json; `python -m bench.online_pictures results/ -o docs/images` draws it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.online_studies import STUDIES, Trial
from simulator.goodput import Goodput, confirmed, goodput, tuned_goodput
from simulator.systems import never_skips, run_exactly


def measure(trial: Trial, precision: float) -> Goodput:
    """One trial, confirmed by the controllers' own scheduler (but for systems that have none)."""
    if trial.knobs is None:
        found = tuned_goodput(trial.system, trial.spec, trial.question, precision=precision)
    else:
        found = goodput(trial.system, trial.knobs, trial.spec, trial.question, precision=precision)
    if trial.system.startswith("fudg-") or never_skips(trial.system, trial.spec):
        return found
    return confirmed(found, trial.spec, trial.question, run_exactly)


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--only", default="", help="keys that begin with this; end it with $ for one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of a run")
    parser.add_argument("--precision", type=float, default=0.03)
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"online-{options.study}.json"
    settings = {"seed": options.seed, "seconds": options.seconds, "precision": options.precision}
    report: dict[str, Any] = {"settings": settings, "trials": {}}
    if path.exists():
        report = json.loads(path.read_text())
        if report["settings"] != settings:
            parser.error(f"{path} was made with {report['settings']}; remove it, or use the same settings")
    for trial in STUDIES[options.study](options.seed, options.seconds):
        if not (trial.key + "$").startswith(options.only):
            continue
        if trial.key not in report["trials"]:
            found = measure(trial, options.precision)
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
