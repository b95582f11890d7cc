"""The seam between a stage worker's plumbing (RPCs, queues, epochs) and what computes a step.

Plumbing never touches tensors: activations are byte buffers. An executor never touches the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.types.adapter import Adapter
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import SampledTokens, StepPlan


@dataclass(frozen=True, slots=True)
class BackendDescription:
    """What a worker can say before it has any layer.

    fingerprint: hex digest of the model's configuration, tensor names and shapes, and samples of its weights.
    dtype: of weights and activations: float32, bfloat16 or float16.
    memory_budget: for weights and KV blocks together, bytes.
    fabric, fabric_device: see DescribeStageResponse; empty: none.
    slow_because: once configured, why it computes several times slower than it could; empty: it does not.
    adapters: that its sequences may have.
    handed: values of a token that a stage hands on to the next one, at most; 0: the model's hidden states.
    """

    model: str
    shape: ModelShape
    fingerprint: str
    device: str
    dtype: str
    memory_budget: int
    fabric: str = ""
    fabric_device: str = ""
    slow_because: str = ""
    adapters: tuple[Adapter, ...] = ()
    handed: int = 0

    @property
    def activation_width(self) -> int:
        """Values of a token between two stages, at most."""
        return self.handed or self.shape.hidden


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Which part of the model a stage is.

    Layers layer_begin .. layer_end - 1. The first stage embeds, the last one has the final norm and LM head.
    kv_blocks: wanted; 0 means as many as the memory budget holds.
    max_step_tokens: no step has more tokens.
    fabric_before, fabric_after: names of the meetings with the neighbours on a fabric; empty: none.
    """

    index: int
    count: int
    layer_begin: int
    layer_end: int
    block_size: int
    kv_blocks: int
    max_step_tokens: int
    fabric_before: str = ""
    fabric_after: str = ""

    @property
    def first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """True for the stage that samples."""
        return self.index == self.count - 1


@dataclass(frozen=True, slots=True)
class OffloadSlots:
    """A stage's second tier, see ConfigureResponse. slots 0: it has none."""

    slots: int = 0
    block_s: float = 0.0
    step_blocks: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Exactly one is set: activations for the next stage, or (last stage) the sampled tokens.

    hidden: tokens x hidden values, row-major, in the pipeline's dtype; empty if they went by fabric.
    seconds: what the device took, where the executor knows it; None: as long as the call.
    """

    hidden: bytes | memoryview | None = None
    sampled: SampledTokens | None = None
    seconds: float | None = None


class PlanError(Exception):
    """A plan makes no sense: unknown sequence, gap in positions, block out of range, too many tokens."""


class OffloadError(Exception):
    """The second tier of a stage cannot go on; the next epoch has none there."""


class KvAccess(Protocol):
    """The KV blocks of one stage in one epoch, from any thread. Layers count over the whole model."""

    @property
    def layout(self) -> str:
        """How a block of one layer is laid out; stages that say the same can take each other's."""
        ...

    @property
    def layer_block_bytes(self) -> int:
        """Of a block of one layer."""
        ...

    def read(self, layer: int, blocks: tuple[int, ...]) -> bytes:
        """The content of blocks, one behind the other; empty if nothing is computed here."""
        ...

    def write(self, layer: int, blocks: tuple[int, ...], data: bytes) -> None:
        """The reverse; returns when it is done. ValueError: it is not of their size."""
        ...

    def layers_stored(self, step_id: int) -> int:
        """How many of the stage's layers have stored their part of a step that is being computed, at least; 0
        where that is not known."""
        ...

    @property
    def way_bytes_per_s(self) -> float:
        """Of the way here, if that is known; 0: it is to be measured."""
        ...

    def way_s(self, nbytes: int) -> float:
        """How much longer so many bytes take on their way here than they took; 0: they came by a real one."""
        ...

    def way_out_s(self, nbytes: int) -> float:
        """The same on their way from here."""
        ...


class Executor(Protocol):
    """Computes the steps of one stage in one epoch. Called from one thread, in the order of the plans."""

    kv_blocks: int
    """KV blocks that the pool has."""
    weight_bytes: int
    """Memory of the weights, bytes."""
    kv_bytes: int
    """Memory of the KV pool, bytes."""

    @property
    def offload(self) -> OffloadSlots:
        """Its second tier."""
        ...

    @property
    def kv(self) -> KvAccess | None:
        """Its KV blocks, for other instances' stages; None: they stay where they are."""
        ...

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """Run one step.

        hidden: activations from the stage before (None for the first stage), as many values for each token as
        that one hands on; empty if they come by fabric. Raises PlanError if the plan does not fit what came
        before, OffloadError if its copies cannot be made.
        """
        ...

    def close(self) -> None:
        """Wait for no other stage any more, from any thread: a step that does fails."""
        ...


class Backend(Protocol):
    """Makes executors. Loading is slow and may be kept between epochs if the layers stay the same."""

    description: BackendDescription

    def configure(self, spec: StageSpec) -> Executor:
        """Load what `spec` needs (unless it is loaded), make an empty KV pool, forget all sequences.

        Raises ModelError (unreadable weights) or ConfigError (budget too small for weights and one sequence).
        """
        ...
