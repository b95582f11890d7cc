"""Profiles a model on this device: a slice of its layers at a time, as a pipeline's stage has them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from stage_worker.executors.protocol import StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.profiling.check import Check, compare, mixed_steps
from stage_worker.profiling.measure import CHUNK, LONG, Plan, Slice, Stopwatch, derive
from stage_worker.profiling.rehearsal import Rehearsal, Step
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.profile import Profile
from tidepipe_common.settings.defaults import BLOCK_SIZE

CPU_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
GPU_SIZES = (1, 2, 4, 8, 16, 32, *range(64, 513, 64), *range(640, 2049, 128))
ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
CHECKED = 10
THIN = 4
"""The second slice has this part of the first one's layers."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Called as steps are measured: how many there are, and after each."""

    total: Callable[[int], None]
    done: Callable[[], None]


class ProfilingSession:
    """One model on one device.

    stages: the slice has this part of the layers. largest: tokens of the largest step, 0 for a usual one.
    Errors as `TorchBackend`.
    """

    def __init__(
        self,
        model: str,
        *,
        stages: int,
        device: str,
        dtype: str,
        threads: int | None,
        quantization: str | None = None,
        largest: int = 0,
    ) -> None:
        self._backend = TorchBackend(
            model, device=device, dtype=dtype, threads=threads, quantization=quantization
        )
        about = self._backend.description
        layers = about.shape.layers
        if not 1 <= stages <= layers:
            raise ConfigError(f"--stages must be 1 to {layers}, the model's layers; got {stages}")
        self._layers = max(1, round(layers / stages))
        self._stages = stages
        sizes = CPU_SIZES if about.device == "cpu" else GPU_SIZES
        most = largest or sizes[-1]
        long = min(LONG, about.shape.context_length - CHUNK - 1)
        if long < CHUNK:
            raise ConfigError(
                f"the model's context of {about.shape.context_length} tokens is too short to profile"
            )
        self._plan = Plan(
            sizes=(*(size for size in sizes if size < most), most),
            rows=tuple(rows for rows in ROWS if rows <= most),
            long=long,
        )
        # One thread's own time is what it takes on a core of its own, whoever else is on this one now.
        alone = about.device == "cpu" and torch.get_num_threads() == 1
        self._clock = time.process_time if alone else time.perf_counter

    def measure(self, rounds: int, progress: Progress) -> tuple[Profile, Check]:
        """Measure everything `rounds` times; then hold the profile against other steps."""
        plan, shape = self._plan, self._backend.description.shape
        thin_layers = max(1, self._layers // THIN)
        checked = mixed_steps(CHECKED, most_tokens=plan.most_tokens, long=plan.long)
        progress.total(rounds * (len(plan.steps()) + len(plan.smallest())) + len(checked))
        # The thin slice first: the worker keeps the layers that it was asked for last.
        thin = self._slice(thin_layers, plan.smallest(), rounds, progress)
        whole = self._slice(self._layers, plan.steps(), rounds, progress)
        profile = derive(plan, whole, thin, shape.layers)
        return profile, compare(profile, shape, self._slice(self._layers, checked, 1, progress), checked)

    def about(self) -> dict[str, Any]:
        """What was measured, and on what."""
        description = self._backend.description
        return {
            "model": description.model,
            "fingerprint": description.fingerprint,
            "device": description.device,
            "machine": platform.processor() or platform.machine(),
            "dtype": description.dtype,
            "threads": torch.get_num_threads(),
            "stages": self._stages,
            "shape": asdict(description.shape),
        }

    def _slice(self, layers: int, steps: list[Step], rounds: int, progress: Progress) -> Slice:
        shape = self._backend.description.shape
        alone = layers == shape.layers
        most = self._plan.most_tokens
        blocks = -(-self._plan.kv_tokens // BLOCK_SIZE) + most
        executor = self._backend.configure(
            StageSpec(
                index=0 if alone else 1,
                count=1 if alone else 2,
                layer_begin=shape.layers - layers,
                layer_end=shape.layers,
                block_size=BLOCK_SIZE,
                kv_blocks=blocks,
                max_step_tokens=most,
            )
        )
        executor.prefault_pool()
        rehearsal = Rehearsal(
            executor,
            kv_blocks=blocks,
            block_size=BLOCK_SIZE,
            hidden=None if alone else self._activations(most, executor.width_in),
            clock=self._clock,
        )
        watch = Stopwatch(rehearsal, steps)
        for _ in range(rounds):
            watch.round(progress.done)
        # The times only: this slice's layers and pool must be gone before the next one's are loaded.
        return Slice(layers, watch.medians())

    def _activations(self, tokens: int, width: int) -> memoryview:
        """Plausible ones, [tokens, bytes]."""
        description = self._backend.description
        dtype = getattr(torch, description.dtype)
        values = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))
        return values.to(dtype).view(torch.uint8).numpy().data
