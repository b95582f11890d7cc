"""What a step's messages cost a controller beside gRPC: plans written, the report read and looked at.

    python -m bench.step_messages --rows 64 --stages 2

CPU microseconds for each step, the least and the median of several runs. Two versions compare in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

from tidepipe.v1 import stage_pb2
from tidepipe_common.codec.numbers import strange_number
from tidepipe_common.codec.plan import WirePlan, news_from_wire
from tidepipe_common.types.plan import DecodeRows, Phase, StepPlan

RUNS, TIMES = 7, 2000


def plan_of(rows: int) -> StepPlan:
    """A decode step, one of whose sequences has a new block."""
    keys, positions, tokens = (tuple(range(begin, begin + rows)) for begin in (1_000, 300, 5_000))
    return StepPlan(7, Phase.DECODE, (), decode=DecodeRows(keys, positions, tokens, ((0, (17,)),)))


def report_of(rows: int, stages: int) -> bytes:
    """What the last stage tells of it, for all."""
    times = {"compute_s": 0.01, "idle_s": 0.001, "plan_wait_s": 0.0005, "input_wait_s": 0.0004}
    before = [stage_pb2.StageTimes(**times)] * (stages - 1)
    step = stage_pb2.StepReport(step_id=7, token_ids=range(rows), before=before, **times)
    return stage_pb2.RunResponse(step=step).SerializeToString()


def microseconds(do: Callable[[], object]) -> tuple[float, float]:
    """Of one call."""
    found = []
    for _ in range(RUNS):
        began = time.thread_time()
        for _ in range(TIMES):
            do()
        found.append(1e6 * (time.thread_time() - began) / TIMES)
    return round(min(found), 1), round(median(found), 1)


def main() -> None:
    """One JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="sequences of a step")
    parser.add_argument("--stages", type=int, default=2)
    options = parser.parse_args()
    plan, raw, last = plan_of(options.rows), report_of(options.rows, options.stages), options.stages - 1

    def write() -> None:
        told = WirePlan(plan)
        for index in range(options.stages):
            for request in told.requests(3, first=index == 0, last=index == last):
                request.SerializeToString()

    def look() -> None:
        message = stage_pb2.RunResponse.FromString(raw)
        assert not strange_number(message) and not any(map(strange_number, message.step.before))

    def read() -> None:
        news_from_wire(stage_pb2.RunResponse.FromString(raw))

    told = {"plans": microseconds(write), "parsed_and_looked_at": microseconds(look)}
    print(json.dumps({**vars(options), **told, "parsed_and_decoded": microseconds(read)}), flush=True)


if __name__ == "__main__":
    main()
