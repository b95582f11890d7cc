"""What predictions are worth: throughput and preemptions in the simulator, by policy and predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.predictor_rivals import running_quantile
from common.latency.files import read_shape
from common.latency.hardware import hardware
from common.latency.profile_file import read_profile
from common.lengths.request import LEVELS, Observation
from common.lengths.trained import TrainedLengths
from controller.simulation.offline import Plant, run_offline
from controller.simulation.predictions import Predict, predictor
from controller.simulation.workload import SimRequest, Workload

POLICIES = ("td-pipe", "auto")
P50, P90 = LEVELS.index(0.5), LEVELS.index(0.9)


def measure(
    model: TrainedLengths,
    train: list[Observation],
    test: list[Observation],
    requests: int,
    profile: Path | None,
) -> dict[str, Any]:
    """Real prompts and lengths of the test part on four L20 (Llama2-13B), drawn with three seeds."""
    measured = read_profile(profile) if profile else None
    plant = Plant(read_shape("llama2-13b"), hardware("l20"), 4, measured, 2048)
    pairs = {
        SimRequest(one.features.prompt_tokens or 1, max(one.output_tokens, 1), 512, index * 1e-9): one
        for index, one in enumerate(test)
    }
    workload = Workload("real answers", tuple(pairs))

    def trained(found: list[SimRequest]) -> list[tuple[float, float] | None]:
        rows = model.quantiles([pairs[one].features for one in found])
        return [(float(row[P50]), float(row[P90])) for row in rows]

    same = running_quantile(train, test[:1])[0]
    predictors: dict[str, Predict] = {
        "oracle": predictor("oracle"),
        "hazard + conformal": lambda found, _: trained(list(found)),
        "running quantile": lambda found, _: [(float(same[P50]), float(same[P90]))] * len(found),
        "none": predictor("none"),
    }
    rows: dict[str, Any] = {}
    for policy in POLICIES:
        rows[policy] = {}
        for name, predict in predictors.items():
            runs = []
            for seed in (1, 2, 3):
                drawn = workload.sample(requests, seed)
                # run_offline sets all arrivals to zero, by which the pairs would be lost.
                answers = predict(drawn.requests, seed)
                runs.append(
                    run_offline(plant, policy, drawn, lambda *_, answers=answers: answers, seed).result  # type: ignore[misc]
                )
            rows[policy][name] = {
                "output_tokens_per_s": sum(run.output_tokens_per_s for run in runs) / len(runs),
                "preemptions": sum(run.preemptions for run in runs) / len(runs),
                "phase_switches": sum(run.phase_switches for run in runs) / len(runs),
            }
            print(policy, name, rows[policy][name], flush=True)
    return {"requests": requests, "seeds": 3, "rows": rows}
