"""`python -m tests.fakes.faulty_worker`: a stage worker that some requests break, end or hang.

The arguments are those of `python -m stage_worker`. A request does harm where its prompt begins with one of
FAULTS (first stage) or one of them is among its stop tokens (last stage), as soon as it has PLACE tokens. If
TIDEPIPE_TEST_ONCE names a file, the worker hangs only while that is not there, and makes it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import stage_worker.service as worker
from stage_worker.executors.protocol import Backend, BackendDescription, Executor, StageSpec, StepOutput
from tidepipe_common.types.plan import StepPlan

RAISES, DIES, HANGS = 29_001, 29_002, 29_003
FAULTS = (RAISES, DIES, HANGS)
PLACE = 16
ONCE = "TIDEPIPE_TEST_ONCE"


class FaultyExecutor:
    """Another executor, until a request of the kinds above comes."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._faults: dict[int, int] = {}
        self.kv_blocks = inner.kv_blocks
        self.weight_bytes = inner.weight_bytes
        self.kv_bytes = inner.kv_bytes
        self.offload = inner.offload
        self.kv = inner.kv

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """See the protocol."""
        for start in plan.starts:
            for fault in set(FAULTS) & set(start.sampling.stop_token_ids):
                self._faults[start.key] = fault
        for row in plan.rows:
            if row.first_position == 0 and row.token_ids and row.token_ids[0] in FAULTS:
                self._faults[row.key] = row.token_ids[0]
            if row.key in self._faults and row.first_position + row.count >= PLACE:
                _do_harm(self._faults[row.key])
        return self._inner.execute(plan, hidden)

    def close(self) -> None:
        """See the protocol."""
        self._inner.close()


class FaultyBackend:
    """Makes faulty executors of another backend's."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.description: BackendDescription = inner.description

    def configure(self, spec: StageSpec) -> Executor:
        """See the protocol."""
        return FaultyExecutor(self._inner.configure(spec))


def _do_harm(fault: int) -> None:
    if fault == RAISES:
        raise RuntimeError("this request is out of order")
    if fault == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if once := os.environ.get(ONCE):
        try:
            Path(once).open("x").close()
        except FileExistsError:
            return
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    make_backend = worker.make_backend
    worker.make_backend = lambda options: FaultyBackend(make_backend(options))
    sys.exit(worker.main())
