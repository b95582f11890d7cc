"""What of a machine each stage worker gets."""

from __future__ import annotations

import pytest

from launcher.config import ClusterConfig
from launcher.devices import worker_device, workers_on_device
from launcher.plan import worker_spec


def test_gpus_are_dealt_out_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers on two GPUs: the first one has two, so each worker plans for half a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [worker_device("cuda", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [workers_on_device("cuda", workers) for workers in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert workers_on_device("cpu", 8) == 1
    # The user's own choice of one device is everybody's.
    assert worker_device("cuda:1", 4) == "cuda:1" and workers_on_device("cuda:1", 4) == 4


def test_where_each_worker_sees_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray cluster the machine that starts an instance has other GPUs, or none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def flags(*, own_device: bool) -> str:
        config = ClusterConfig(model="m", stages=4, device="cuda")
        return " ".join(worker_spec(config, 0, 3, own_device=own_device).arguments)

    assert "--device cuda:1" in flags(own_device=False) and "--workers-on-device 2" in flags(own_device=False)
    assert "--device cuda " in flags(own_device=True) and "--workers-on-device" not in flags(own_device=True)
