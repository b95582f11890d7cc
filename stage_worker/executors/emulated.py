"""An executor that computes nothing and takes as long as a latency model says: many devices on one machine.

Everything else is real: processes, RPCs, plans, activations of the true size (zeros), KV accounting.
Tokens are a function of the position, never one that ends a sequence: outputs run to their limits.

Devices hand activations on by their link, not through Python: a stage behind another one begins when those
before it ended and the link's time passed, however long the RPC took beside that. So the activations begin
with when that was, and steps start and end on the devices' own course, which no late wake-up lengthens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
import time
from collections.abc import Callable
from pathlib import Path

from stage_worker.executors.protocol import (
    BackendDescription,
    OffloadSlots,
    PlanError,
    StageSpec,
    StepOutput,
)
from stage_worker.loading.model_spec import read_spec
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.linear import WEIGHT_BYTES, linear_weights
from tidepipe_common.latency.model import LatencyModel, Parallelism
from tidepipe_common.latency.profile import cost_model
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.latency.shapes import named_shape
from tidepipe_common.latency.work import work_of
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import SampledTokens, SequenceStart, StepPlan
from tidepipe_common.types.prompt_reading import PromptLogprobs, PromptPiece

MEMORY_SHARE = 0.9
OFFLOAD_STEP_BYTES = 256 << 20
_STRIDE = 7919
"""A prime, so that the tokens of an output differ."""
_ENDED = struct.Struct("<d")
"""At the head of activations: when their step ended, by the machine's monotonic clock."""
_LONGEST_WAY_S = 1.0
"""What lies further back was written by another machine's clock."""


class EmulatedBackend:
    """Stands in for one device; implements `Backend`.

    model: a known shape's name (llama2-13b), or what `resolve_model` finds; its weights stay unread.
    profile: what the whole model takes on one device (`tidepipe profile`); None models it (roofline).
    Raises ModelError for an unusable model, ConfigError for an unusable setting.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "l20",
        profile: Path | None = None,
        memory_budget: int | None = None,
        allow_download: bool = False,
        offload_bytes: int = 0,
        network_bytes_per_s: float | None = None,
    ) -> None:
        """network_bytes_per_s: between instances, of what comes to this stage and of what goes from it, each;
        None: as its link.
        """
        self._hardware = hardware(device)
        self._offload_bytes = offload_bytes
        self._network_bytes_per_s = network_bytes_per_s
        shape, fingerprint = _find(model, allow_download)
        # The whole model on one device; a stage takes its share of it.
        measured = read_profile(profile) if profile else None
        self._latency = cost_model(shape, self._hardware, measured, Parallelism())
        self._linked = cost_model(shape, self._hardware, measured, Parallelism(stages=2))
        budget = (
            int(self._hardware.memory_gb * 1e9 * MEMORY_SHARE) if memory_budget is None else memory_budget
        )
        self.description = BackendDescription(
            model=model,
            shape=shape,
            fingerprint=fingerprint,
            device=f"emulated:{self._hardware.name}",
            dtype="bfloat16",
            memory_budget=budget,
        )

    def configure(self, spec: StageSpec) -> EmulatedExecutor:
        """An empty KV pool; nothing is loaded."""
        link = self._hardware.link_gb_s * 1e9
        tier = (self._offload_bytes, link) if self._offload_bytes else None
        way = link if self._network_bytes_per_s is None else self._network_bytes_per_s
        return EmulatedExecutor(self.description, spec, self._latency, self._linked.transfer_s, tier, way)


class EmulatedKv:
    """Blocks without content, which take their time on the way here and from here; implements `KvAccess`."""

    def __init__(self, shape: ModelShape, block_size: int, bytes_per_s: float, layers: int = 1) -> None:
        """layers: of the stage."""
        self._layers = layers
        self._step = 0, 0.0, 0.0
        self.layer_block_bytes = shape.kv_bytes_per_token(1, WEIGHT_BYTES) * block_size
        self.layout = f"emulated {self.layer_block_bytes}"
        self._bytes_per_s = bytes_per_s
        self._in_free_at = self._out_free_at = 0.0

    def computes(self, step_id: int, begins: float, ends: float) -> None:
        """A step is computed from then until then, one layer after the other."""
        self._step = step_id, begins, ends

    def layers_stored(self, step_id: int) -> int:
        """See KvAccess."""
        known, begins, ends = self._step
        if known != step_id or ends <= begins:
            return 0
        return min(self._layers, int(self._layers * (time.monotonic() - begins) / (ends - begins)))

    @property
    def way_bytes_per_s(self) -> float:
        """See KvAccess."""
        return self._bytes_per_s if math.isfinite(self._bytes_per_s) else 0.0

    def read(self, layer: int, blocks: tuple[int, ...]) -> bytes:
        """Nothing is in them."""
        return b""

    def write(self, layer: int, blocks: tuple[int, ...], data: bytes) -> None:
        """Nothing to write."""

    def way_s(self, nbytes: int) -> float:
        """First come, first served, one at a time at full rate."""
        now = time.monotonic()
        self._in_free_at = max(self._in_free_at, now) + nbytes / self._bytes_per_s
        return self._in_free_at - now

    def way_out_s(self, nbytes: int) -> float:
        """Likewise; a way in each direction."""
        now = time.monotonic()
        self._out_free_at = max(self._out_free_at, now) + nbytes / self._bytes_per_s
        return self._out_free_at - now


class EmulatedExecutor:
    """One stage's steps, slept through. Positions are checked as a real one would."""

    def __init__(
        self,
        about: BackendDescription,
        spec: StageSpec,
        latency: LatencyModel,
        transfer_s: Callable[[int], float],
        tier: tuple[int, float] | None = None,
        link_bytes_per_s: float = math.inf,
    ) -> None:
        """transfer_s: what the device's link takes for the activations of so many tokens.

        link_bytes_per_s: of the way on which other instances' KV blocks come.

        tier: bytes of the second tier, and bytes per second of the way there.
        """
        shape = about.shape
        layers = spec.layer_end - spec.layer_begin
        self._spec = spec
        self._shape = shape
        self._layers = layers
        self._latency = latency
        self._transfer_s = transfer_s
        self._free_at = 0.0
        self._lengths: dict[int, int] = {}
        self._prompts: dict[int, SequenceStart] = {}
        self._zeros = memoryview(bytes(spec.max_step_tokens * shape.hidden * WEIGHT_BYTES))
        self.weight_bytes = int(linear_weights(shape) * WEIGHT_BYTES * layers / shape.layers)
        block_bytes = shape.kv_bytes_per_token(layers, WEIGHT_BYTES) * spec.block_size
        room = max(0, about.memory_budget - self.weight_bytes) // block_bytes
        self.kv_blocks = spec.kv_blocks or room
        self.kv_bytes = self.kv_blocks * block_bytes
        self.kv = EmulatedKv(shape, spec.block_size, link_bytes_per_s, layers)
        self.offload = OffloadSlots()
        if tier is not None:
            most, per_second = tier
            step_blocks = max(1, OFFLOAD_STEP_BYTES // block_bytes)
            self.offload = OffloadSlots(most // block_bytes, block_bytes / per_second, step_blocks)
        if self.kv_blocks < 1:
            raise ConfigError(
                f"{about.memory_budget / 1e9:.1f} GB hold {self.weight_bytes / 1e9:.1f} GB of weights and no "
                "KV block; use more stages"
            )

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """Sleep as long as the step takes, see `Executor`."""
        starts = self._starts(plan, hidden, time.monotonic())
        self._apply(plan, hidden)
        last = self._spec.last
        seconds = self._latency.stage_s(work_of(plan), self._layers, last=last) if plan.tokens else 0.0
        seconds += len(plan.copies) * self.offload.block_s
        self._free_at = ends = starts + seconds
        self.kv.computes(plan.step_id, starts, ends)
        time.sleep(max(0.0, ends - time.monotonic()))
        if not self._spec.last:
            size = plan.tokens * self._shape.hidden * WEIGHT_BYTES
            head = _ENDED.pack(ends)[:size]
            return StepOutput(hidden=b"".join((head, self._zeros[len(head) : size])), seconds=seconds)
        shape = self._shape
        decoded = [token_at(position + 1, shape) for position in plan.decode.positions]
        others = [token_at(row.first_position + row.count, shape) for row in plan.listed if row.sample]
        sampled = SampledTokens((*decoded, *others), prompts=self._read_prompts(plan))
        return StepOutput(sampled=sampled, seconds=seconds)

    def close(self) -> None:
        """Nothing waits here."""

    def _read_prompts(self, plan: StepPlan) -> tuple[PromptPiece, ...]:
        """Of those that want it: every token as likely as any other, and vectors of ones."""
        pieces = []
        for row in plan.rows if self._prompts else ():
            start = self._prompts.get(row.key)
            if start is None:
                continue
            count = min(row.count, start.prompt_tokens - row.first_position)
            end = row.first_position + count
            read, vector = None, b""
            if (top := start.sampling.prompt_logprobs) is not None and start.history:
                read = self._even(start, row.first_position + 1, min(end + 1, start.prompt_tokens), top)
            if end >= start.prompt_tokens:
                del self._prompts[row.key]
                if start.sampling.pooling is not None:
                    vector = struct.pack(f"<{self._shape.hidden}f", *[1.0] * self._shape.hidden)
            if count > 0:
                pieces.append(PromptPiece(row.key, row.first_position, count, read, vector))
        return tuple(pieces)

    def _even(self, start: SequenceStart, begin: int, end: int, top: int) -> PromptLogprobs | None:
        if begin >= end:
            return None
        own = start.history[begin:end]
        ids = [token for one in own for token in (one, *range(top))]
        likely = -math.log(self._shape.vocab_size)
        return PromptLogprobs(
            begin,
            top,
            struct.pack(f"<{len(ids)}I", *ids),
            struct.pack(f"<{len(ids)}f", *[likely] * len(ids)),
            struct.pack(f"<{len(own)}I", *[1] * len(own)),
        )

    def _starts(self, plan: StepPlan, hidden: bytes | memoryview | None, now: float) -> float:
        """When the device begins: as soon as it is free and has the activations of the stage before."""
        if hidden is None or len(hidden) < _ENDED.size:
            return now
        ended: float = _ENDED.unpack_from(hidden)[0]
        if not now - _LONGEST_WAY_S <= ended <= now:
            return now
        return min(now, max(self._free_at, ended + self._transfer_s(plan.tokens)))

    def _apply(self, plan: StepPlan, hidden: bytes | memoryview | None) -> None:
        if plan.tokens > self._spec.max_step_tokens:
            raise PlanError(f"{plan.tokens} tokens in a step, {self._spec.max_step_tokens} at most")
        if not self._spec.first and len(hidden or b"") != plan.tokens * self._shape.hidden * WEIGHT_BYTES:
            raise PlanError(f"{len(hidden or b'')} bytes of activations for {plan.tokens} tokens")
        for block, slot in (*plan.copies.saves, *[(block, slot) for slot, block in plan.copies.loads]):
            if block >= self.kv_blocks or slot >= self.offload.slots:
                raise PlanError(f"no block {block} in {self.kv_blocks}, or no slot {slot}")
        for key in plan.releases:
            self._lengths.pop(key, None)
            self._prompts.pop(key, None)
        for start in plan.starts:
            self._lengths[start.key] = start.begins_at
            if start.sampling.reads_prompt:
                self._prompts[start.key] = start
        begin = {start.key for start in plan.starts}
        decode = plan.decode
        for index, blocks in decode.new_blocks:
            self._check_blocks(decode.keys[index], blocks)
        for key, position in zip(decode.keys, decode.positions, strict=True):
            self._grow(key, position, 1, begins=key in begin)
        for row in plan.listed:
            self._check_blocks(row.key, row.new_blocks)
            self._grow(row.key, row.first_position, row.count, begins=row.key in begin)

    def _check_blocks(self, key: int, blocks: tuple[int, ...]) -> None:
        if blocks and max(blocks) >= self.kv_blocks:
            raise PlanError(f"sequence {key}: no block {max(blocks)} in {self.kv_blocks}")

    def _grow(self, key: int, first_position: int, count: int, *, begins: bool) -> None:
        known = self._lengths.get(key)
        if begins and first_position % self._spec.block_size == 0:
            known = first_position  # behind whole blocks that were computed for others
        if known != first_position:
            raise PlanError(f"sequence {key}: position {first_position} follows {known}")
        self._lengths[key] = first_position + count


def token_at(position: int, shape: ModelShape) -> int:
    """What is sampled for that place, whatever stands before it; so a recomputed sequence goes on as before.
    Never an end token."""
    token = position * _STRIDE % shape.vocab_size
    while token in shape.eos_token_ids:
        token = (token + 1) % shape.vocab_size
    return token


def _find(model: str, allow_download: bool) -> tuple[ModelShape, str]:
    if (shape := named_shape(model)) is not None:
        return shape, hashlib.sha256(repr(shape).encode()).hexdigest()
    # Not the weights, whose reading brings PyTorch along: nothing is computed from them.
    spec = read_spec(resolve_model(model, allow_download=allow_download))
    return spec.shape, hashlib.sha256(
        json.dumps(dataclasses.asdict(spec), sort_keys=True).encode()
    ).hexdigest()
