"""What of a machine each stage worker gets."""

from __future__ import annotations

import pytest

from tidepipe.cluster.devices import worker_device, workers_on_device


def test_gpus_are_dealt_out_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers on two GPUs: the first one has two, so each worker plans for half a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [worker_device("cuda", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [workers_on_device("cuda", workers) for workers in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert workers_on_device("cpu", 8) == 1
    # The user's own choice of one device is everybody's.
    assert worker_device("cuda:1", 4) == "cuda:1" and workers_on_device("cuda:1", 4) == 4
