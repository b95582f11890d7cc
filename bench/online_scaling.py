"""A cluster that grows and shrinks, in virtual time: by forecast, or by EcoServe's triggers alone.

    python -m bench.online_scaling -o results/                      # all courses
    python -m bench.online_scaling --courses step --start-s 30 --seeds 1,2,3 -o results/

Courses of the request rate (ShareGPT-like lengths): `rise`, from 20 to 50 per second and back in steps of a
minute; `step`, from 8 to 35 at once; `bursts`, 20 per second in bursts (gamma arrivals, CV 2). Macro
instances have 6 to 11 instances, so that the twelfth splits the first one. Requests that cannot be served in
time are refused early, as live. Writes online-scaling.json and, of the first seed, online-scaling.png:
attainment of 5-second windows, instances, and what scaling did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.online_studies import CHAT, MAX_TOTAL, STUDY, cluster
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig
from router.scheduler.scaling import ScalingRules
from simulator.cluster import ClusterRules, VirtualCluster
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.job import NOT_YET, Job
from tidepipe_common.settings.defaults import ROUTING_POLICIES
from workloads.arrivals import MIXES

WINDOW_S = 5.0
MOST = 24
RULES = ("forecast", "triggers")


@dataclass(frozen=True, slots=True)
class Course:
    """levels: seconds and requests per second. instances: at the beginning, and at least.

    cv: of the gaps between arrivals; 1: Poisson.
    """

    levels: Sequence[tuple[float, float]]
    instances: int
    cv: float = 1.0

    @property
    def seconds(self) -> float:
        """All levels together."""
        return sum(seconds for seconds, _ in self.levels)


COURSES = {
    "rise": Course(
        [(60.0, rate) for rate in (20.0, 30.0, 40.0, 50.0, 50.0, 50.0, 20.0, 20.0, 20.0, 20.0)], 6
    ),
    "step": Course([(60.0, 8.0), (180.0, 35.0)], 3),
    "bursts": Course([(600.0, 20.0)], 7, cv=2.0),
}


def demand(course: Course, seed: int) -> list[Job]:
    """Arrivals of a course, ShareGPT-like lengths."""
    chance = np.random.default_rng([seed, 17])
    times: list[float] = []
    began = 0.0
    for seconds, rate in course.levels:
        if course.cv == 1.0:
            count = chance.poisson(rate * seconds)
            times += [float(t) for t in np.sort(chance.uniform(0, seconds, count)) + began]
        else:
            shape = 1.0 / course.cv**2
            gaps = chance.gamma(shape, 1.0 / (rate * shape), round(2 * rate * seconds))
            times += [float(t) + began for t in np.cumsum(gaps) if t < seconds]
        began += seconds
    lengths = MIXES["sharegpt-like"](len(times), seed).within(MAX_TOTAL, MAX_TOTAL).requests
    wrong = np.exp(chance.normal(0.0, 0.3, len(times)))
    return [
        Job(i, one.prompt_tokens, one.output_tokens, at, CHAT, max(1, round(one.output_tokens * float(off))))
        for i, (one, at, off) in enumerate(zip(lengths, times, wrong, strict=True))
    ]


def run(name: str, rule: str, start_s: float, seed: int, policy: str) -> dict[str, Any]:
    """start_s: from asking for an instance to its first request."""
    course = COURSES[name]
    spec = cluster("l20", STUDY, course.instances)
    cost, kv_tokens = spec.latency(), spec.kv_tokens()
    rules = InstanceRules(mixed=policy == "padg", budget=256 if policy == "padg" else 2048)

    def make(name: str, born: float) -> FastForwardInstance:
        return FastForwardInstance(name, rules, cost, spec.stages, kv_tokens, born)

    scaling = ScalingRules(CHAT, least=course.instances, most=MOST, anticipate=rule == "forecast")
    config = OverallConfig(policy=policy, bounds=Bounds(6, 11), max_pending=100_000, scaling=scaling)
    scaled = VirtualCluster(
        ClusterRules(config, start_s=start_s, shed=True),
        make,
        cost,
        stages=spec.stages,
        context=spec.context,
        step_tokens=rules.budget,
    )
    scaled.start(course.instances)
    jobs = demand(course, seed)
    scaled.run(jobs)
    log = scaled.log
    admitted = [job for job in jobs if job.refused == NOT_YET]
    return {
        "course": name,
        "rule": rule,
        "start_s": start_s,
        "policy": policy,
        "seed": seed,
        "attainment": _met(jobs),
        "of_admitted": _met(admitted),
        "levels": levels(course, jobs),
        "windows": windows(course, jobs),
        "instances": log.instances,
        "scaling": [[note.time_s, note.what, list(note.sizes)] for note in log.scaling],
        "splits": [note.time_s for note in log.scaling if note.what == "split"],
    }


def _met(jobs: Sequence[Job]) -> float:
    """Share of requests within both targets; those refused are not."""
    return sum(job.refused == NOT_YET and job.met(switch_wait=True) for job in jobs) / max(1, len(jobs))


def levels(course: Course, jobs: Sequence[Job]) -> list[list[float]]:
    """Requests per second and attainment of each level."""
    found, began = [], 0.0
    for seconds, rate in course.levels:
        inside = [job for job in jobs if began <= job.arrival < began + seconds]
        found.append([rate, _met(inside)])
        began += seconds
    return found


def windows(course: Course, jobs: Sequence[Job]) -> list[list[float]]:
    """Start, arrivals, attainment, the share that was admitted, and attainment of these, of each window."""
    found = []
    for start in np.arange(0.0, course.seconds, WINDOW_S):
        inside = [job for job in jobs if start <= job.arrival < start + WINDOW_S]
        if inside:
            admitted = [job for job in inside if job.refused == NOT_YET]
            share = len(admitted) / len(inside)
            found.append([float(start), len(inside), _met(inside), share, _met(admitted)])
    return found


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Rate and instances above, attainment below; a line where a macro instance split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(runs), figsize=(6 * len(runs), 5), sharex="col", layout="constrained", squeeze=False
    )
    for column, one in enumerate(runs):
        above, below = axes[0][column], axes[1][column]
        at, requests, met, admitted, _ = zip(*one["windows"], strict=True)
        above.step(at, [count / WINDOW_S for count in requests], where="post", label="requests/s")
        times, counts = zip(*one["instances"], strict=True)
        end = [COURSES[one["course"]].seconds]
        above.step([*times, *end], [*counts, counts[-1]], where="post", label="instances", lw=2)
        above.set_title(f"{one['course']}, by {one['rule']}, start in {one['start_s']:g} s")
        below.plot(at, [100 * share for share in admitted], color="tab:gray", lw=0.8, label="admitted")
        below.plot(at, [100 * share for share in met], color="tab:green", label="within both targets")
        below.axhline(90, color="black", lw=0.8)
        below.set(ylim=(0, 102), xlim=(0, end[0]), xlabel="seconds", ylabel="of all requests, %")
        for split in one["splits"]:
            for each in (above, below):
                each.axvline(split, color="tab:red", lw=0.8, ls="--")
        above.legend(fontsize="small", frameon=False)
        below.legend(fontsize="small", frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--courses", default=",".join(COURSES), help=f"of {', '.join(COURSES)}")
    parser.add_argument("--rules", default=",".join(RULES), help=f"of {', '.join(RULES)}")
    parser.add_argument("--start-s", type=float, default=30.0, help="from asking for an instance to it")
    parser.add_argument("--policy", default="padg", help="where requests go", choices=ROUTING_POLICIES)
    parser.add_argument("--seeds", default="1", help="several: 1,2,3")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [
        run(course, rule, options.start_s, int(seed), options.policy)
        for seed in options.seeds.split(",")
        for course in options.courses.split(",")
        for rule in options.rules.split(",")
    ]
    (options.out / "online-scaling.json").write_text(json.dumps(runs))
    draw([one for one in runs if one["seed"] == runs[0]["seed"]], options.out / "online-scaling.png")
    for one in runs:
        most = max(count for _, count in one["instances"])
        each = ", ".join(f"{rate:g}/s {met:.1%}" for rate, met in one["levels"])
        print(
            f"{one['course']} by {one['rule']}, seed {one['seed']}: {one['attainment']:.1%} attained "
            f"({each}), {one['of_admitted']:.1%} of those admitted; up to {most} instances"
        )
        for time, what, sizes in one["scaling"]:
            print(f"  {time:7.1f} s  {what}  {sizes}")


if __name__ == "__main__":
    main()
