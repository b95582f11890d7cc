"""How good a model of lengths is, from one file of answers: calibration, drift, cost, worth in virtual time.

    python -m bench.predictor_data PROMPTS.jsonl bench/data/smollm2-135m-lengths.csv -o DATA.jsonl
    python -m bench.predictor_report DATA.jsonl -o results/ [--profile L20_LLAMA2_13B.csv]

Writes predictor.json (parts that were not asked for stay as they are), calibration.png, pinball.png,
importance.png, drift.png and simulated.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench import (
    predictor_drift,
    predictor_latency,
    predictor_limits,
    predictor_quality,
    predictor_rivals,
    predictor_simulated,
)
from predictor.evaluation.figures import figures
from predictor.training.dataset import read_answers
from predictor.training.fit import fit
from predictor.training.pictures import draw_report
from predictor.training.report import train_into
from predictor.training.trees import Settings
from tidepipe_common.lengths.request import LEVELS

PARTS = ("quality", "limits", "ablation", "drift", "latency", "simulated", "pictures")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3000, help="of the simulated workload")
    parser.add_argument("--profile", type=Path, default=None, help="measured times for the simulator")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "predictor.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    answers = read_answers(options.data)
    with options.data.open(encoding="utf-8") as source:
        lines = [json.loads(line) for line in source]
    for part in options.only.split(","):
        report[part] = _part(part, answers, lines, options)
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
        print(f"{part}: {json.dumps(report[part], indent=1)}", flush=True)


def _part(part: str, answers: Any, lines: list[dict[str, Any]], options: argparse.Namespace) -> Any:
    train, test = predictor_quality.split(answers, seed=0)
    match part:
        case "quality":
            return predictor_quality.measure(answers, options.splits)
        case "ablation":
            return predictor_quality.ablation(answers, [line["source"] for line in lines], options.splits)
        case "limits":
            return predictor_limits.measure(answers, options.splits)
        case "drift":
            sources = [line["source"] for line in lines]
            most = max(set(sources), key=sources.count)
            first = [one for one, source in zip(answers, sources, strict=True) if source == most]
            then = [one for one, source in zip(answers, sources, strict=True) if source != most]
            return predictor_drift.measure(first, then, options.output)
        case "latency":
            with tempfile.TemporaryDirectory() as folder:
                train_into(Path(folder) / "model", train, Settings(), lambda *_: None)
                prompts = [str(line["prompt"]) for line in lines]
                return predictor_latency.measure(Path(folder) / "model", prompts)
        case "simulated":
            model = fit(train, "hazard/1").model
            return predictor_simulated.measure(
                model, train, test, options.requests, options.profile, options.output
            )
        case "pictures":
            model = fit(train, "hazard/1").model
            requests = [one.features for one in test]
            rows = {
                "hazard + conformal": figures(test, model.quantiles(requests), LEVELS),
                "hazard": figures(test, model.quantiles(requests, calibrated=False), LEVELS),
            }
            for name, rival in (
                ("prompt length", predictor_rivals.prompt_length),
                ("running quantile", predictor_rivals.running_quantile),
            ):
                rows[name] = figures(test, rival(train, test), LEVELS)
            return [path.name for path in draw_report(model, rows, options.output)]
    raise SystemExit(f"unknown part {part!r}; known: {', '.join(PARTS)}")


if __name__ == "__main__":
    main()
