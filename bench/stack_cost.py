"""What the gRPC stack costs: the whole live system beside the same engine in one process, in turn.

    python -m bench.stack_cost WORKLOAD.json --stages 2 --rounds 3 --out stack-cost.json

In one process the same scheduler plans for the same executors, one thread per stage, with queues in place
of RPCs: no router, no controller process, no messages. Live is `tidepipe bench throughput`. Wall clock; both
load the model before their clock starts. Prints both medians and their ratio, and writes every run.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.engine import Pipeline, add_engine_options, arrivals_of
from bench.peers.children import PeerError, end_children_when_ended
from bench.peers.places import Places
from bench.peers.tidepipe import TidePipe
from controller.scheduler.actions import Dispatch, Emit
from controller.scheduler.events import Event, StepDone
from stage_worker.executors.protocol import Executor
from tidepipe_common.types.plan import SampledTokens, StepPlan

_RUN_S = 1800.0


class Stage:
    """A stage on a thread of its own. plans, hidden: None ends it."""

    def __init__(
        self, executor: Executor, following: Stage | None, events: queue.Queue[Event | BaseException]
    ):
        self.plans: queue.Queue[StepPlan | None] = queue.Queue()
        self.hidden: queue.Queue[bytes | None] = queue.Queue()
        self._executor = executor
        self._following = following
        self._events = events
        self.busy_s = 0.0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while (plan := self.plans.get()) is not None:
                hidden = self.hidden.get()
                begin = time.monotonic()
                output = self._executor.execute(plan, hidden or None)
                self.busy_s += time.monotonic() - begin
                if self._following is not None:
                    self._following.hidden.put(bytes(output.hidden or b""))
                else:
                    self._events.put(StepDone(plan.step_id, output.sampled or SampledTokens(())))
        except Exception as error:
            self._events.put(error)


def in_process(pipeline: Pipeline, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Serve all requests; seconds from the first plan to the last token, and the busy share of each stage."""
    events: queue.Queue[Event | BaseException] = queue.Queue()
    stages: list[Stage] = []
    for executor in reversed(pipeline.executors):
        stages.insert(0, Stage(executor, stages[0] if stages else None, events))
    for stage in stages:
        stage.thread.start()
    for arrival in arrivals_of(items, len(stages)):
        events.put(arrival)
    left = sum(item["out"] for item in items)
    begin = time.monotonic()
    while left:
        event = events.get(timeout=_RUN_S)
        if isinstance(event, BaseException):
            raise event
        for action in pipeline.scheduler.on(event, time.monotonic() - begin):
            if isinstance(action, Dispatch):
                for stage in stages:
                    stage.plans.put(action.plan)
                stages[0].hidden.put(b"")
            elif isinstance(action, Emit):
                left -= len(action.token_ids)
    seconds = time.monotonic() - begin
    for stage in stages:
        stage.plans.put(None)
        stage.thread.join(60.0)
    return {"seconds": round(seconds, 3), "busy": [round(stage.busy_s / seconds, 3) for stage in stages]}


def live(workload: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same by a cluster of processes; PeerError if a request fails."""
    flags = ["--stages", str(options.stages), "--dtype", options.dtype, "--policy", options.policy]
    if options.quantization:
        flags += ["--quantization", options.quantization]
    places = Places(workload.parent, options.model)
    report = TidePipe(places, "live", tuple(flags)).measure(workload, workload.parent)
    if report["short"]:
        raise PeerError(f"{report['short']} requests failed: {report['first_error']}")
    return {"seconds": report["seconds"], "busy": [stage["busy"] for stage in report["stages"]]}


def main() -> None:
    """Measure in turn, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_engine_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    end_children_when_ended()
    items = json.loads(options.workload.read_text())[: options.requests or None]
    runs: dict[str, list[dict[str, Any]]] = {"in process": [], "live": []}
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload.json"
        workload.write_text(json.dumps(items))
        for _ in range(options.rounds):
            # A new pipeline each time, and none in memory while the cluster runs.
            pipeline = Pipeline(options.model, options.stages, options, items)
            runs["in process"].append(in_process(pipeline, items))
            del pipeline
            runs["live"].append(live(workload, options))
            print(runs["in process"][-1], runs["live"][-1], flush=True)
    medians = {name: statistics.median(run["seconds"] for run in of) for name, of in runs.items()}
    ratio = round(medians["live"] / medians["in process"], 3)
    result = {"requests": len(items), "medians": medians, "live_over_in_process": ratio, "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
