"""Who hands activations over by fabric."""

from __future__ import annotations

from controller.core.fabric import FabricPort, shared_ways


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
    assert shared_ways(ports) == [True, False, False, False, False]
