"""`python -m stage_worker.profiling.neighbour`: keeps a core busy as another stage would, until stdin ends.

Stages of one machine share its memory bandwidth and its caches; a profile taken alone would promise too much.
"""

from __future__ import annotations

import argparse
import sys
import threading

from stage_worker.profiling.session import ProfilingSession, Progress
from tidepipe_common.errors import TidePipeError


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser("python -m stage_worker.profiling.neighbour", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    try:
        session = ProfilingSession(
            options.model,
            stages=options.stages,
            device="cpu",
            dtype=options.dtype,
            threads=options.threads,
            largest=256,
        )
    except TidePipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    threading.Thread(target=_work, args=(session,), daemon=True).start()
    print("working", flush=True)
    # Whoever started us closes the pipe, by intent or by its end.
    sys.stdin.buffer.read()
    return 0


def _work(session: ProfilingSession) -> None:
    session.measure(sys.maxsize, Progress(total=lambda _: None, done=lambda: None))


if __name__ == "__main__":
    sys.exit(main())
