"""The specification of a simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.scheduler.mitosis import Bounds
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.profile import Profile, cost_model
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.model_shape import ModelShape

NETWORK_GB_S = {"l20": 1.25, "a100": 3.1, "a800": 3.1, "h100": 50.0}
"""Between nodes, per node: 10 Gb Ethernet, 25 Gb RoCE, 400 Gb InfiniBand (EcoServe's clusters)."""

REACHED = 0.9
"""Of a network's nominal rate."""


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """`instances` of one model, each `tensor` x `stages` devices of one kind.

    profile: measured times; None models them (roofline).
    network_gb_s: between nodes, per node; 0 for what is usual beside the device (NETWORK_GB_S).
    node_devices: devices of a node. max_total: see `context`. prefix_caching: as of live instances.
    kv_transfer: KV blocks go from one instance to another, where that pays. dispatch_s: what a step costs
    beside computing.
    """

    shape: ModelShape
    hardware: Hardware
    instances: int
    tensor: int = 1
    stages: int = 1
    profile: Profile | None = None
    network_gb_s: float = 0.0
    node_devices: int = 8
    max_total: int = 0
    prefix_caching: bool = True
    kv_transfer: bool = True
    dispatch_s: float = DISPATCH_S

    @property
    def context(self) -> int:
        """Tokens of one sequence at most: `max_total`, or what the model was made for."""
        return min(self.max_total or self.shape.context_length, self.kv_tokens())

    @property
    def devices(self) -> int:
        """Of all instances."""
        return self.instances * self.tensor * self.stages

    @property
    def one_group(self) -> Bounds:
        """All instances in one macro instance."""
        return Bounds(1, max(1, self.instances))

    @property
    def network_bytes_per_s(self) -> float:
        """Reached between two nodes."""
        nominal = self.network_gb_s or NETWORK_GB_S.get(self.hardware.name, 1.25)
        return nominal * 1e9 * REACHED

    @property
    def bus_bytes_per_s(self) -> float:
        """Reached between two instances of a node."""
        return self.hardware.link_gb_s * 1e9

    def latency(self) -> LatencyModel:
        """Step times of one stage of one instance."""
        parallel = Parallelism(self.stages, self.tensor)
        return cost_model(self.shape, self.hardware, self.profile, parallel)

    def kv_tokens(self) -> int:
        """KV memory of one instance; ConfigError if not even the weights fit."""
        return self.latency().kv_blocks(BLOCK_SIZE) * BLOCK_SIZE

    def split(self, tensor: int) -> ClusterSpec:
        """The same devices as instances of another size; ConfigError if that cannot be."""
        if tensor < 1 or self.devices % (tensor * self.stages):
            raise ConfigError(f"{self.devices} devices cannot be instances of {tensor * self.stages}")
        return replace(self, tensor=tensor, instances=self.devices // (tensor * self.stages))
