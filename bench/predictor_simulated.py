"""What predictions are worth: throughput and preemptions in the simulator, by policy and predictor."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from bench.predictor_rivals import running_quantile
from simulator.offline import PipelineSpec, run_offline
from simulator.predictions import Predict, predictor
from simulator.record import RunResult
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.lengths.request import LEVELS, Observation
from tidepipe_common.lengths.trained import TrainedLengths
from workloads.mixes import SimRequest, Workload

POLICIES = ("td-pipe", "auto")
SEEDS = (1, 2, 3)
P50, P90 = LEVELS.index(0.5), LEVELS.index(0.9)
FIGURES = (
    "output_tokens_per_s",
    "preemptions",
    "recomputed_tokens",
    "phase_switches",
    "kv_used_mean",
    "forecast_error",
)


def measure(
    model: TrainedLengths,
    train: list[Observation],
    test: list[Observation],
    requests: int,
    profile: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """Real prompts and lengths of the test part on four L20 (Llama2-13B), drawn with three seeds.

    Draws simulated.png into the folder.
    """
    measured = read_profile(profile) if profile else None
    spec = PipelineSpec(read_shape("llama2-13b"), hardware("l20"), 4, measured, 2048)
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

    def run(policy: str, predict: Predict, seed: int) -> RunResult:
        drawn = workload.sample(requests, seed)
        # run_offline sets all arrivals to zero, by which the pairs would be lost.
        answers = predict(drawn.requests, seed)
        return run_offline(spec, policy, drawn, lambda *_: answers, seed).result

    rows: dict[str, Any] = {}
    for policy in POLICIES:
        rows[policy] = {}
        for name, predict in predictors.items():
            rows[policy][name] = _figures([run(policy, predict, seed) for seed in SEEDS])
            print(policy, name, rows[policy][name], flush=True)
    rows["hybrid"] = {"none": _figures([run("hybrid", predictor("none"), seed) for seed in SEEDS])}
    bound = mean(spec.bound(workload.sample(requests, seed)).output_tokens_per_s for seed in SEEDS)
    _draw(rows, folder / "simulated.png")
    return {"requests": requests, "seeds": len(SEEDS), "bound": bound, "rows": rows}


def _figures(runs: list[RunResult]) -> dict[str, float]:
    return {name: mean(getattr(run, name) or 0.0 for run in runs) for name in FIGURES}


def _draw(rows: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, lost) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    names = list(rows[POLICIES[0]])
    for place, policy in enumerate(POLICIES):
        at = [index + 0.4 * place for index in range(len(names))]
        for axes, figure_name in ((speed, "output_tokens_per_s"), (lost, "preemptions")):
            bars = axes.bar(at, [rows[policy][name][figure_name] for name in names], 0.38, label=policy)
            axes.bar_label(bars, fmt="%.0f", fontsize=8)
    speed.axhline(rows["hybrid"]["none"]["output_tokens_per_s"], color="grey", linestyle="--", label="hybrid")
    speed.set_ylabel("output tokens per second")
    speed.set_ylim(bottom=4000)
    lost.set_ylabel("preemptions")
    for axes in (speed, lost):
        axes.set_xticks([index + 0.2 for index in range(len(names))], names, fontsize=8)
    speed.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
