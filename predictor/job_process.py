"""A training beside the service: a process of its own, at the lowest priority and with one thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from tidepipe_common.errors import ModelError

JOB_TIMEOUT_S = 900.0


async def run_job(module: str, folder: Path, samples: bytes, *arguments: str) -> None:
    """`python -m MODULE FOLDER ..`; ModelError if it fails or takes too long.

    samples: what it learns from, by a pipe: no answer comes to a disk, whoever is killed when.
    """
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, str(folder), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **one_core},
    )
    try:
        async with asyncio.timeout(JOB_TIMEOUT_S):
            _, errors = await process.communicate(samples)
    except TimeoutError as error:
        raise ModelError(f"training took longer than {JOB_TIMEOUT_S:g} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise ModelError(f"training ended with code {process.returncode}: {''.join(last)}")
