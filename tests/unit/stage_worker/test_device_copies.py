"""Double-buffered copies, with marks that tell when the device would be done."""

from __future__ import annotations

import numpy as np
import torch

from stage_worker.device_copies import HostCopies, PinnedCopies

CPU = torch.device("cpu")


class Log:
    """Marks that note what is done to them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.made = 0

    def make(self) -> Log.Mark:
        self.made += 1
        return Log.Mark(self, f"slot {self.made}")

    class Mark:
        def __init__(self, log: Log, name: str) -> None:
            self._log, self._name = log, name

        def record(self) -> None:
            self._log.events.append(f"{self._name} busy")

        def synchronize(self) -> None:
            self._log.events.append(f"{self._name} waited for")


def pinned(log: Log) -> PinnedCopies:
    return PinnedCopies(CPU, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), log.make)


def test_a_buffer_is_filled_again_only_after_the_device_has_left_it() -> None:
    log = Log()
    copies = pinned(log)
    arrays = [np.arange(n, dtype=np.int64).reshape(-1, 2) for n in (4, 6, 2000)]
    on_device = [copies.upload("slots", array) for array in arrays]
    assert all(torch.equal(x, torch.from_numpy(y)) for x, y in zip(on_device, arrays, strict=True))
    assert log.events == [
        "slot 1 waited for",
        "slot 1 busy",
        "slot 2 waited for",
        "slot 2 busy",
        "slot 1 waited for",
        "slot 1 busy",
    ]


def test_downloaded_bytes_survive_later_steps() -> None:
    log = Log()
    copies = pinned(log)
    tensors = [torch.full((3, 2), n, dtype=torch.bfloat16) for n in range(4)]
    results = [copies.download(tensor.t()) for tensor in tensors]
    assert [bytes(x) for x in results] == [x.view(torch.uint8).numpy().tobytes() for x in tensors]
    # Each is waited for before its bytes are taken.
    assert log.events[1:3] == ["slot 1 busy", "slot 1 waited for"]


def test_received_bytes_may_be_written_over() -> None:
    for copies in (HostCopies(), pinned(Log())):
        received = bytes(8)
        copies.received(received).fill_(1)
        assert received == bytes(8)


def test_a_cpu_gets_no_copies() -> None:
    array, tensor = np.arange(4), torch.arange(4)
    assert HostCopies().upload("ids", array).data_ptr() == array.ctypes.data
    assert np.frombuffer(HostCopies().download(tensor), dtype=np.int64).ctypes.data == tensor.data_ptr()


def test_finish_waits_for_what_is_queued() -> None:
    log = Log()
    pinned(log).finish()
    assert log.events == ["slot 1 busy", "slot 1 waited for"]
