"""What an instance takes of a Ray cluster, by its engine."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.config import ClusterConfig

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tidepipe[ray]'")


@pytest.mark.parametrize(
    ("settings", "cluster", "count", "text"),
    [
        ({"stages": 2, "threads": 2}, {"CPU": 9.0}, 2, "9 CPU free in the Ray cluster, 4 an instance"),
        ({"stages": 2, "device": "cuda"}, {"CPU": 9.0, "GPU": 5.0}, 2, "5 GPU free in the Ray cluster, 2 an"),
        ({"engine": "vllm", "tensor_parallel": 2}, {"CPU": 5.0}, 2, "5 CPU free in the Ray cluster, 2 an"),
        ({"engine": "vllm", "stages": 2, "tensor_parallel": 2}, {"CPU": 64.0, "GPU": 8.0}, 2, "8 GPU free"),
    ],
    ids=("native", "native with GPUs", "vLLM", "vLLM with GPUs"),
)
def test_room_is_counted_by_what_an_instance_takes(
    settings: dict[str, Any],
    cluster: dict[str, float],
    count: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from launcher.provision.ray import RayProvisioner

    for name in ("available_resources", "cluster_resources"):
        monkeypatch.setattr(ray, name, lambda: cluster)
    config = ClusterConfig(model="m", provisioner="ray", insecure=True, **settings)
    room = RayProvisioner(config, "router:1", "predictor:1", lambda module: {}).room()
    assert room is not None and room.more == count
    assert room.why.startswith(text)


def test_an_engine_that_asks_ray_itself_is_not_placed_by_us() -> None:
    with pytest.raises(ValueError, match="leave distributed_executor_backend out"):
        ClusterConfig(
            model="m",
            engine="vllm",
            provisioner="ray",
            engine_args='{"distributed_executor_backend": "ray"}',
        )
