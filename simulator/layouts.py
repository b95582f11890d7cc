"""What instances can be made of given devices: layouts of a fleet, stages times tensor-parallel devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from simulator.cluster_spec import ClusterSpec
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.hardware import Hardware
from tidepipe_common.latency.profile import Profile
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.model_shape import ModelShape

STAGES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Lengths of pipelines that are tried."""
UNEVEN = 1.15
"""The longest stage of a pipeline over the mean one: layouts beyond it are left out."""
MOST_INSTANCES = 256
"""Of a cluster: more of them are several clusters."""


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """Of one instance: `stages`, each of `tensor` devices."""

    stages: int
    tensor: int

    @property
    def devices(self) -> int:
        """Of one instance."""
        return self.stages * self.tensor


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices of one kind, `gpus` in each of `nodes`, and the model that they are to serve.

    network_gb_s, max_total, prefix_caching, dispatch_s: as of ClusterSpec.
    """

    shape: ModelShape
    hardware: Hardware
    nodes: int
    gpus: int
    profile: Profile | None = None
    network_gb_s: float = 0.0
    max_total: int = 0
    prefix_caching: bool = True
    dispatch_s: float = DISPATCH_S

    @property
    def devices(self) -> int:
        """All of them."""
        return self.nodes * self.gpus

    def spans(self, layout: Layout) -> bool:
        """Is an instance larger than a node?"""
        return layout.devices > self.gpus

    def most_instances(self, layout: Layout) -> int:
        """That there is room for: whole ones in a node, or stages wherever a node has room for one."""
        if self.spans(layout):
            return min(MOST_INSTANCES, self.nodes * (self.gpus // layout.tensor) // layout.stages)
        return min(MOST_INSTANCES, self.nodes * (self.gpus // layout.devices))

    def spec(self, layout: Layout, instances: int) -> ClusterSpec:
        """That many instances. Stages that lie on several nodes hand on over the network, all of them."""
        spec = ClusterSpec(
            self.shape,
            self.hardware,
            instances,
            layout.tensor,
            layout.stages,
            self.profile,
            self.network_gb_s,
            self.gpus,
            self.max_total,
            self.prefix_caching,
            dispatch_s=self.dispatch_s,
        )
        if not self.spans(layout):
            return spec
        link = min(self.hardware.link_gb_s, spec.network_bytes_per_s / 1e9)
        return replace(spec, hardware=replace(self.hardware, link_gb_s=link))

    def layouts(self, longest: int) -> tuple[list[Layout], list[tuple[Layout, str]]]:
        """Those that can be, and those that cannot with the reason; smallest first. longest: request, tokens.

        ConfigError, in the model's own words, if it fits into none.
        """
        possible: list[Layout] = []
        refused: list[tuple[Layout, str]] = []
        last: ConfigError | None = None
        for layout in sorted(self._shapes(), key=lambda one: (one.devices, one.stages)):
            uneven = math.ceil(self.shape.layers / layout.stages) * layout.stages / self.shape.layers
            if self.shape.heads % layout.tensor:
                why = f"{self.shape.heads} attention heads are not shared evenly by {layout.tensor} devices"
            elif uneven > UNEVEN:
                why = f"{self.shape.layers} layers make {layout.stages} stages that are too unequal"
            elif self.spans(layout) and layout.tensor > 1:
                why = "tensor-parallel instances are started within a node"
            elif not self.most_instances(layout):
                why = "there are not so many devices"
            else:
                try:
                    tokens = self.spec(layout, 1).kv_tokens()
                except ConfigError as error:
                    last = error
                    why = "the weights do not fit"
                else:
                    if tokens >= longest + BLOCK_SIZE:
                        possible.append(layout)
                        continue
                    why = f"beside the weights {tokens} tokens fit, and the longest request has {longest}"
                    last = last or ConfigError(f"instances of {layout.devices} x {self.hardware.name}: {why}")
            refused.append((layout, why))
        if not possible:
            raise last or ConfigError(f"no layout of {self.devices} devices can be; give more of them")
        return possible, refused

    def _shapes(self) -> Iterator[Layout]:
        tensor = 1
        while tensor <= self.gpus:
            for stages in STAGES:
                if stages * tensor <= self.devices and stages <= self.shape.layers:
                    yield Layout(stages, tensor)
            tensor *= 2
