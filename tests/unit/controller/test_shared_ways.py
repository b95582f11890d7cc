"""Who hands activations over by fabric."""

from __future__ import annotations

from controller.scheduler.fabric import FabricPort, obstacles


def test_neighbours_on_one_fabric_with_devices_of_their_own() -> None:
    """Stages: two GPUs of a host, the second one again, one of another host, one without a fabric."""
    ports = [
        FabricPort("nccl:a", "gpu 0"),
        FabricPort("nccl:a", "gpu 1"),
        FabricPort("nccl:a", "gpu 1"),
        FabricPort("nccl:b", "gpu 0"),
        FabricPort(),
        FabricPort(),
    ]
    reasons = obstacles(ports)
    assert reasons[0] == ""
    for reason, part in zip(
        reasons[1:], ("same device", "different hosts", "no fabric", "no fabric"), strict=True
    ):
        assert part in reason
