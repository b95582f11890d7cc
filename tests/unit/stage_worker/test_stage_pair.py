"""The way between two stages, with Gloo in NCCL's place: order, memory, and ends that go away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from stage_worker.fabric import pair
from stage_worker.fabric.pair import StagePair, check_backend
from tidepipe_common.errors import ConfigError, UnavailableError

CPU = torch.device("cpu")


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[StagePair, StagePair]]:
    """Sender and receiver."""
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(StagePair, "gloo", tmp_path / "place", 0, CPU)
        receiver = StagePair("gloo", tmp_path / "place", 1, CPU)
        both = sender.result(), receiver
    yield both
    for end in both:
        end.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_arrive_in_order_though_their_memory_is_used_again(
    ends: tuple[StagePair, StagePair], dtype: torch.dtype
) -> None:
    sender, receiver = ends
    steps = [torch.randn(tokens, 8).to(dtype) for tokens in (3, 1, 256, 5, 2, 7, 1)]

    def send() -> None:
        buffer = torch.empty(256, 8, dtype=dtype)
        for step in steps:
            buffer[: len(step)] = step
            sender.send(buffer[: len(step)])

    with ThreadPoolExecutor() as threads:
        sent = threads.submit(send)
        for step in steps:
            assert torch.equal(receiver.receive(tuple(step.shape), dtype), step)
        sent.result()


def test_who_waits_for_an_end_that_is_given_up_fails(ends: tuple[StagePair, StagePair]) -> None:
    sender, receiver = ends
    sender.send(torch.ones(1, 8))  # not taken yet
    closer = threading.Timer(0.2, sender.close)
    closer.start()
    with pytest.raises(RuntimeError):
        for _ in range(2):
            receiver.receive((1, 8), torch.float32)
    closer.join()
    with pytest.raises(RuntimeError, match="given up"):
        sender.send(torch.ones(1, 8))


def test_an_end_that_nobody_meets_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "MEET_S", 0.5)
    with pytest.raises(UnavailableError, match="next stage"):
        StagePair("gloo", tmp_path / "place", 0, CPU)
    assert not list(tmp_path.iterdir())


def test_a_backend_that_does_not_fit_the_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuda devices"):
        check_backend("nccl", CPU)
