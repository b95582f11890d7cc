"""Copies between host and device: pinned and double-buffered for a GPU, none at all on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

_SLOTS = 2
"""Buffers of one purpose: the host fills one while the device may still read the other."""


class Mark(Protocol):
    """A place in the device's queue of work."""

    def record(self) -> None:
        """Put the mark behind all work queued so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has come to the mark; at once if it was never recorded."""
        ...


class Copies(Protocol):
    """Moves what a step needs to the device, and its result back."""

    def upload(self, name: str, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array on the device. name: its purpose, under which buffers are kept."""
        ...

    def received(self, buffer: bytes | memoryview) -> torch.Tensor:
        """A received buffer, which may be read-only, in memory of our own on the device: uint8, flat."""
        ...

    def download(self, tensor: torch.Tensor) -> bytes | memoryview:
        """The tensor's bytes, row-major, in memory that later steps leave alone."""
        ...

    def finish(self) -> None:
        """Wait until the device has done all work queued so far."""
        ...


class HostCopies:
    """For a CPU: the device's memory is the host's."""

    def upload(self, name: str, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array itself."""
        return torch.from_numpy(array)

    def received(self, buffer: bytes | memoryview) -> torch.Tensor:
        """One copy: the layers write in place."""
        return torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8).copy())

    def download(self, tensor: torch.Tensor) -> bytes | memoryview:
        """The tensor's own memory."""
        return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data

    def finish(self) -> None:
        """Nothing is queued."""


class CudaMark:
    """An event on the device's present stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """See Mark."""
        self._event.record(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        """See Mark."""
        self._event.synchronize()


class PinnedCopies:
    """For a GPU: copies from and to page-locked memory run beside the host.

    From pageable memory the driver would first copy to a buffer of its own, and wait for the device.
    """

    def __init__(
        self,
        device: torch.device,
        allocate: Callable[[int], torch.Tensor] | None = None,
        make_mark: Callable[[], Mark] | None = None,
    ) -> None:
        """allocate: page-locked bytes, uint8. make_mark: a fresh mark on the device."""
        self._device = device
        self._allocate = allocate or _pinned
        self._make_mark = make_mark or (lambda: CudaMark(device))
        self._slots: dict[str, list[_Slot]] = {}

    def upload(self, name: str, array: npt.NDArray[Any]) -> torch.Tensor:
        """See Copies; returns before the copy is done, what is queued behind it waits for it."""
        flat = np.ascontiguousarray(array).reshape(-1)
        slot = self._next(name, flat.nbytes)
        slot.memory.numpy()[: flat.nbytes] = flat.view(np.uint8)
        staged = slot.memory[: flat.nbytes].view(torch.from_numpy(np.empty(0, flat.dtype)).dtype)
        result = torch.empty(array.shape, dtype=staged.dtype, device=self._device)
        result.view(-1).copy_(staged, non_blocking=True)
        slot.mark.record()
        return result

    def received(self, buffer: bytes | memoryview) -> torch.Tensor:
        """See Copies."""
        return self.upload("received", np.frombuffer(buffer, dtype=np.uint8))

    def download(self, tensor: torch.Tensor) -> bytes | memoryview:
        """See Copies; waits for the result.

        The bytes leave the page-locked buffer, as another thread sends them while later steps use it.
        """
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        slot = self._next("download", flat.numel())
        slot.memory[: flat.numel()].copy_(flat, non_blocking=True)
        slot.mark.record()
        slot.mark.synchronize()
        return slot.memory.numpy()[: flat.numel()].tobytes()

    def finish(self) -> None:
        """See Copies."""
        mark = self._make_mark()
        mark.record()
        mark.synchronize()

    def _next(self, name: str, nbytes: int) -> _Slot:
        """The older slot of that purpose, once the device has left it."""
        slots = self._slots.setdefault(name, [])
        if len(slots) < _SLOTS:
            slots.append(_Slot(self._allocate(0), self._make_mark()))
        else:
            slots.append(slots.pop(0))
        slot = slots[-1]
        slot.mark.synchronize()
        if slot.memory.numel() < nbytes:
            # By doubling: each allocation of page-locked memory takes milliseconds.
            slot.memory = self._allocate(max(4096, 1 << (nbytes - 1).bit_length()))
        return slot


class _Slot:
    """Host memory, and when the device will have left it."""

    __slots__ = ("mark", "memory")

    def __init__(self, memory: torch.Tensor, mark: Mark) -> None:
        self.memory = memory
        self.mark = mark


def _pinned(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def copies_for(device: torch.device) -> Copies:
    """What moves data to and from this device."""
    return HostCopies() if device.type == "cpu" else PinnedCopies(device)


def check_device(device: torch.device) -> None:
    """Wait for all streams of the device; raises what is wrong with it, if anything is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
