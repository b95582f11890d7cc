"""One service by itself, as a process of its own: started, and heard of when it is ready."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from tidepipe_common.rpc.lifecycle import READY_FD

Process = subprocess.Popen[bytes]


@contextlib.contextmanager
def started(
    service: str, *arguments: str, before: Callable[[], None] | None = None, **environment: str
) -> Iterator[tuple[Process, dict[str, str]]]:
    """`python -m SERVICE`, and what it announced: `ready` with its address, or `failed` and why.

    before: called in the process before it begins. Whoever wants a peaceful end sends SIGTERM, and waits.
    """
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", service, *arguments],
        env={**os.environ, READY_FD: str(writer), **environment},
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
        preexec_fn=before,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            announced = json.loads(pipe.readline())
        yield process, announced
    finally:
        process.kill()
        process.wait()
