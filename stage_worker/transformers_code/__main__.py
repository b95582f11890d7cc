"""`python -m stage_worker.transformers_code`: reads a config.json from stdin and tries the model out.

Writes what `examination.py` reads.
"""

from __future__ import annotations

import contextlib
import json
import sys

from stage_worker.transformers_code.examination import MOST_BYTES, MOST_CPU_S, Examination, told
from tidepipe_common.process_limits import end_with_parent, limit_process


def main() -> None:
    """Entry point."""
    end_with_parent()
    limit_process(MOST_BYTES, MOST_CPU_S)
    values = json.loads(sys.stdin.read())
    # Whatever a library prints is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        found = _found(values)
    print(told(found))


def _found(values: dict[str, object]) -> Examination:
    import torch
    from transformers.utils import logging

    from stage_worker.transformers_code.attention_calls import UnsuitableError
    from stage_worker.transformers_code.trial import tried

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        return Examination(tried(values))
    except UnsuitableError as error:
        return Examination(None, str(error))


main()
