"""A worker of vLLM's that notes when it computes: `--worker-cls`, in vLLM's own environment.

Each step becomes a line `{"begin": .., "end": .., "waited": .., "tokens": ..}` of the file RANK.jsonl in the
folder that STAGE_TIMES names. waited: seconds of it for the stage before.
"""

import json
import os
import time
from pathlib import Path

from vllm.distributed.parallel_state import GroupCoordinator
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.cpu_worker import CPUWorker

FOLDER = "STAGE_TIMES"
waited = 0.0


def _timed(function):
    def timed(*args, **kwargs):
        global waited
        begin = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            waited += time.monotonic() - begin

    return timed


GroupCoordinator.irecv_tensor_dict = _timed(GroupCoordinator.irecv_tensor_dict)
gpu_worker.AsyncIntermediateTensors.wait_for_comm = _timed(gpu_worker.AsyncIntermediateTensors.wait_for_comm)


class TimedWorker(CPUWorker):
    """See the module. A step is written when its tokens are sampled, or when the next one begins."""

    def execute_model(self, scheduler_output):
        """The layers of a step."""
        global waited
        begin, waited = time.monotonic(), 0.0
        output = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens:
            self._note(begin, scheduler_output.total_num_scheduled_tokens)
        return output

    def sample_tokens(self, grammar_output):
        """The head, at the last stage."""
        global waited
        begin, waited = time.monotonic(), 0.0
        output = super().sample_tokens(grammar_output)
        self._note(begin, 0)
        return output

    def _note(self, begin, tokens):
        line = {"begin": begin, "end": time.monotonic(), "waited": waited, "tokens": tokens}
        if not hasattr(self, "_times"):
            # By the line: workers are killed.
            self._times = Path(os.environ[FOLDER], f"{self.rank}.jsonl").open("w", buffering=1)  # noqa: SIM115
        self._times.write(json.dumps(line) + "\n")
