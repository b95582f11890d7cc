"""One end of the way between two neighbouring stages, over torch.distributed."""

from __future__ import annotations

import datetime
import os
from collections import deque
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed as dist

from tidepipe_common.errors import ConfigError, UnavailableError

BACKENDS = ("nccl", "gloo")
MEET_S = 30.0
"""Stages are configured together: the other one is there within moments, or not at all."""
MOST_PENDING = 4
"""Sends that the next stage has not taken yet; it is behind by a few micro-batches at most."""


_log = structlog.get_logger()


class StagePair:
    """The sender or the receiver of one stage's activations; in the order of the steps, from one thread.

    NCCL moves them from GPU to GPU, on streams of its own that wait for each other there; Gloo moves them
    between CPUs, and stands in for it where there is no GPU. What a step is travels by RPC: only then does
    the receiver ask, so nobody waits on the device for a stage that has nothing to send.
    """

    def __init__(self, backend: str, place: Path, rank: int, device: torch.device) -> None:
        """rank: 0 sends, 1 receives. Waits for the other end; UnavailableError if it does not come."""
        self._device = device
        self._place = place
        self._pending: deque[tuple[Any, torch.Tensor]] = deque()
        self._group: Any = None
        try:
            self._group = _group(backend, place, rank)
            # NCCL connects at the first message: now, as later it would count as a step.
            if rank == 0:
                self.send(torch.zeros(1, device=device))
                self._wait_oldest()
            else:
                self.receive((1,), torch.float32)
        except RuntimeError as error:
            self.close()
            role = "next" if rank == 0 else "previous"
            raise UnavailableError(f"no way to the {role} stage by {backend}: {error}") from error

    def send(self, hidden: torch.Tensor) -> None:
        """Queue activations; the caller may overwrite them at once. RuntimeError if the way is broken."""
        group = self._present()
        while len(self._pending) >= MOST_PENDING:
            self._wait_oldest()
        # CUDA graphs and workspaces use the same memory for the next step.
        kept = hidden.detach().clone(memory_format=torch.contiguous_format)
        self._pending.append((group.send([kept], 1, 0), kept))

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Activations of the next step, in memory of their own. RuntimeError if the way is broken.

        On a GPU it returns before they are there; what is queued behind waits for them.
        """
        buffer = torch.empty(shape, dtype=dtype, device=self._device)
        work = self._present().recv([buffer], 0, 0)
        if self._device.type == "cuda":
            work.synchronize()  # on the device only; `wait` would hold the host up (see _group)
        else:
            work.wait()
        return buffer

    def close(self) -> None:
        """Give the way up, from any thread; the other end's waiting fails at once, our own soon.

        NCCL's abort ends what waits here as well. Gloo's does not: that ends when the other end is closed,
        too, or after MEET_S.
        """
        group, self._group = self._group, None
        # Connections end with the last reference.
        self._pending = deque()
        try:
            if group is not None:
                group.abort()
        except RuntimeError as error:
            # Broken already, or so it says; the rest must still be given up.
            _log.warning("a way to a neighbouring stage did not end in order", reason=str(error))
        finally:
            self._place.unlink(missing_ok=True)

    def _present(self) -> Any:
        group = self._group
        if group is None:
            raise RuntimeError("the way to the neighbouring stage was given up")
        return group

    def _wait_oldest(self) -> None:
        pending = self._pending
        if pending:
            work, _ = pending.popleft()
            work.wait()


def check_backend(backend: str, device: torch.device) -> None:
    """ConfigError if the backend cannot be had on this device."""
    if backend not in BACKENDS:
        raise ConfigError(f"unknown fabric {backend!r}; known: {', '.join(BACKENDS)}")
    wanted = "cuda" if backend == "nccl" else "cpu"
    if device.type != wanted:
        raise ConfigError(f"--fabric {backend} moves activations between {wanted} devices, not {device}")
    available = dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()
    if not available:
        raise ConfigError(f"this PyTorch ({torch.__version__}) has no {backend}; leave --fabric out")


def fabric_device(device: torch.device) -> str:
    """Which device this is, the same in every process."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return f"process {os.getpid()}"


def _group(backend: str, place: Path, rank: int) -> Any:
    # Groups by themselves, not the process-wide default one: a stage in the middle has two neighbours, and
    # every epoch has new ones.
    timeout = datetime.timedelta(seconds=MEET_S)
    store = dist.FileStore(str(place), 2)  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    # NCCL's own meeting has no limit: who is there first would wait for ever for one that does not come.
    store.set(f"here {rank}", "1")
    store.wait([f"here {1 - rank}"], timeout)
    # Both ends are on this host: no other one needs to reach them.
    if backend == "gloo":
        gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        gloo._timeout = timeout
        return dist.ProcessGroupGloo(store, rank, 2, gloo)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    # Else PyTorch's watchdog ends this process, which is healthy, when a neighbour was killed and a message
    # has not got through in time. This way waiting for a send fails after that time, and that is all.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    nccl = dist.ProcessGroupNCCL.Options()
    nccl._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, 2, nccl)
