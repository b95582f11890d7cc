"""A backend without a model: adds one to activations, samples the number of tokens seen."""

from __future__ import annotations

import numpy as np

from stage_worker.executors.protocol import (
    BackendDescription,
    Executor,
    OffloadSlots,
    StageSpec,
    StepOutput,
)
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import SampledTokens, StepPlan

SHAPE = ModelShape("llama", 4, 8, 2, 1, 4, 16, 100, 64, (2,), True)


class FakeExecutor:
    """Hidden values are float32; each stage adds one to them."""

    kv_blocks = 32
    weight_bytes = 1000
    kv_bytes = 2000
    offload = OffloadSlots()
    kv = None

    def __init__(self, spec: StageSpec) -> None:
        self._spec = spec

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """See the protocol."""
        if any(row.token_ids and row.token_ids[0] == 99 for row in plan.rows):
            raise RuntimeError("token 99 always fails")
        if hidden is None:
            values = np.zeros((plan.tokens, SHAPE.hidden), dtype=np.float32)
        else:
            values = np.frombuffer(hidden, dtype=np.float32).reshape(plan.tokens, SHAPE.hidden)
        values = values + 1
        if not self._spec.last:
            return StepOutput(hidden=values.tobytes())
        return StepOutput(sampled=SampledTokens(tuple(int(values[0, 0]) for row in plan.rows if row.sample)))

    def close(self) -> None:
        """See the protocol."""


class FakeBackend:
    """Counts how often it was configured."""

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.description = BackendDescription("fake", SHAPE, fingerprint, "cpu", "float32", 10**6)
        self.specs: list[StageSpec] = []

    def configure(self, spec: StageSpec) -> Executor:
        """See the protocol."""
        self.specs.append(spec)
        return FakeExecutor(spec)
