"""The maker of PyTorch executors: a checkpoint that is opened, a stage's layers, its KV pool."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import structlog
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext
from stage_worker.attention.native_paged import NativePagedAttention
from stage_worker.attention.static_batch import StaticBackend
from stage_worker.device_copies import copies_for
from stage_worker.executors.cuda_capture import CudaCapture
from stage_worker.executors.decode_graphs import DecodeGraphs, capture_decode
from stage_worker.executors.library_code import LibraryStage, check_tensors, library_code, products_of
from stage_worker.executors.protocol import BackendDescription, OffloadError, StageSpec
from stage_worker.executors.torch_compute import make_compute
from stage_worker.executors.torch_device import (
    choose_device,
    choose_dtype,
    default_memory_budget,
    dtype_name,
)
from stage_worker.executors.torch_executor import StageDecoder, StageParts, TorchExecutor
from stage_worker.fabric.neighbours import FabricWays, open_ways
from stage_worker.fabric.pair import check_backend, fabric_device
from stage_worker.fabric.rendezvous import fabric_id
from stage_worker.kv_pool import KvPool, PoolAccess, size_pool
from stage_worker.loading.adapters import (
    AdapterFolder,
    adaptable,
    adapted,
    adapter_bytes,
    load_adapters,
    open_adapter,
)
from stage_worker.loading.model_spec import ModelCode
from stage_worker.loading.open_checkpoint import open_checkpoint
from stage_worker.loading.stage_weights import StageSlice, load_stage
from stage_worker.models.adapters import StageAdapters, StepAdapters
from stage_worker.models.decoder import Decoder
from stage_worker.models.rope import RotaryTable
from stage_worker.models.weights import StageWeights
from stage_worker.models.workspace import Workspace
from stage_worker.sampling.apart import StepSampler
from stage_worker.second_tier import BlockMover, check_place, open_tier
from tidepipe_common.errors import ConfigError
from tidepipe_common.memory import return_freed
from tidepipe_common.model_source import resolve_model
from tidepipe_common.settings.adapters import AdapterPlace
from tidepipe_common.settings.offload import OffloadPlace
from tidepipe_common.types.adapter import Adapter

_log = structlog.get_logger()

GRAPHS_SWITCH = "TIDEPIPE_CUDA_GRAPHS"
"""Environment variable; 0 runs decode steps without CUDA graphs."""

SamplerFactory = Callable[[int, torch.device], StepSampler]
"""Makes the last stage's sampler from vocabulary size and device."""


class TorchBackend:
    """Serves one model from one device; implements `Backend`.

    model: as for `resolve_model`. device: auto, cpu, cuda or cuda:N. dtype: auto, float32, bfloat16 or
    float16. quantization: int8 (weights, and activations as they come) or None.
    memory_budget: bytes for weights and KV blocks, None for a share of what is free.
    threads: CPU threads for computing, None for as many as PyTorch finds.
    Raises ModelError for an unusable model, ConfigError for an unusable setting.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        memory_budget: int | None = None,
        threads: int | None = None,
        allow_download: bool = False,
        make_sampler: SamplerFactory | None = None,
        fabric: str | None = None,
        workers_on_device: int = 1,
        offload: OffloadPlace | None = None,
        adapters: Sequence[AdapterPlace] = (),
        model_code: ModelCode = "auto",
    ) -> None:
        """fabric: nccl or gloo, to hand activations over past the host where the next stage can.

        workers_on_device: that share a GPU, if memory_budget is None.
        offload: the second tier's place; None: there is none. adapters: that sequences may have.
        model_code: see `read_spec`.
        """
        if workers_on_device < 1:
            raise ConfigError(f"workers_on_device must be at least 1, got {workers_on_device}")
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        if memory_budget is not None and memory_budget < 1:
            raise ConfigError(f"memory_budget must be at least 1 byte, got {memory_budget}")
        self._device = choose_device(device)
        self._fabric = fabric
        self._offload = offload
        if offload is not None and self._device.type == "cpu":
            check_place(offload)
        elif offload is not None and offload.folder is not None:
            raise ConfigError("--kv-offload of a GPU is page-locked memory; name a size only, no folder")
        if fabric is not None:
            check_backend(fabric, self._device)
        path = resolve_model(model, allow_download=allow_download)
        self._checkpoint = open_checkpoint(path, model_code)
        self._library = library_code(self._checkpoint)
        unused = check_tensors(self._checkpoint, self._library)
        if unused:
            # As transformers does; an old checkpoint may have tables that are computed anew.
            _log.warning("tensors that the model does not use", count=len(unused), such_as=sorted(unused)[:5])
        spec = self._checkpoint.spec
        self._dtype = choose_dtype(dtype, spec.native_dtype, self._device)
        self._compute = make_compute(self._device, self._dtype, torch.get_num_threads(), quantization)
        self._make_sampler = make_sampler or _sampler_of(path)
        self._loaded: tuple[StageSlice, StageWeights | LibraryStage] | None = None
        self._adapter_folders: list[AdapterFolder] = []
        if adapters:
            base = adaptable(spec) if self._library is None else self._library.adaptable()
            self._adapter_folders = [open_adapter(place, spec, base) for place in adapters]
        self._adapters: tuple[StageSlice, StageAdapters] | None = None
        self.description = BackendDescription(
            model=model,
            shape=spec.shape,
            # Stages of one pipeline must agree on it.
            fingerprint="-".join(filter(None, (self._checkpoint.fingerprint(), quantization))),
            device=str(self._device),
            dtype=dtype_name(self._dtype),
            memory_budget=(
                default_memory_budget(self._device, workers_on_device)
                if memory_budget is None
                else memory_budget
            ),
            fabric="" if fabric is None else fabric_id(fabric),
            fabric_device="" if fabric is None else fabric_device(self._device),
            adapters=tuple(Adapter(one.name, one.fingerprint) for one in self._adapter_folders),
            handed=spec.handed,
        )

    def configure(self, spec: StageSpec) -> TorchExecutor:
        """Load the stage's weights unless they are loaded, and start with an empty KV pool."""
        _check(spec, self._checkpoint.spec.layers)
        with self._device_of_thread():
            # Before anything that takes long: both ends are here now.
            ways = open_ways(self._fabric, spec, self._device)
        try:
            return self._configured(spec, ways)
        except BaseException:
            ways.close()
            raise

    def _configured(self, spec: StageSpec, ways: FabricWays) -> TorchExecutor:
        if self._device.type == "cuda":
            # What is left of the epoch before, in circles of a library's: PyTorch does not collect it, not
            # even when the device has no memory left.
            gc.collect()
        model = self._checkpoint.spec
        part = StageSlice(spec.layer_begin, spec.layer_end, spec.first, spec.last)
        weights = self._weights(part)
        adapters = (
            self._stage_adapters(part, weights.nbytes)
            if isinstance(weights, StageWeights)
            else weights.adapters
        )
        compute = self._compute
        slow_layers = 0
        if not isinstance(weights, StageWeights):
            slow_layers = weights.slow_layers
            # Layers whose scores have rules attend by PyTorch, which reads numbers.
            compute = dataclasses.replace(compute, int8_cache=False)
        slow = compute.slow_for(model, spec.block_size, weights.by_pytorch, slow_layers)
        if slow_layers:
            _log.warning("slow attention", reason=slow)
        self.description = dataclasses.replace(self.description, slow_because=slow)
        geometry = compute.kv_geometry(model, part.end - part.begin, spec.block_size, self._dtype)
        budget = self.description.memory_budget
        spare = 1 if self._device.type == "cuda" else 0  # for the padding of CUDA graphs
        budget -= spare * geometry.block_bytes
        held = weights.nbytes + adapters.nbytes
        blocks = size_pool(geometry, spec.kv_blocks, budget, held, model.context_length)
        pool = KvPool(geometry, blocks, self._device, spare)
        mover = self._mover(pool)
        native = False

        def attention(context: AttentionContext) -> AttentionBackend:
            nonlocal native
            made = compute.attention(context)
            native = native or isinstance(made, NativePagedAttention)
            return made

        decoder: StageDecoder
        graphs: DecodeGraphs | None = None
        if isinstance(weights, StageWeights):
            decoder, graphs = self._own_decoder(
                weights, adapters, part, pool, spec.max_step_tokens, attention
            )
        else:
            with self._device_of_thread():
                decoder = weights.decoder(model, pool, self._device, attention)
        return TorchExecutor(
            StageParts(
                stage=spec,
                model=model,
                decoder=decoder,
                pool=pool,
                weight_bytes=weights.nbytes,
                device=self._device,
                dtype=self._dtype,
                sampler=self._make_sampler(model.vocab_size, self._device) if spec.last else None,
                graphs=graphs,
                ways=ways,
                mover=mover,
                lose_tier=self._lose_tier,
                adapters=adapters,
                kv=PoolAccess(pool, part.begin, "native" if native else "plain"),
            )
        )

    def _own_decoder(
        self,
        weights: StageWeights,
        adapters: StageAdapters,
        part: StageSlice,
        pool: KvPool,
        most_rows: int,
        make_attention: Callable[[AttentionContext], AttentionBackend],
    ) -> tuple[Decoder, DecodeGraphs | None]:
        """What computes the layers of a family that has code of TidePipe's own."""
        model, compute = self._checkpoint.spec, self._compute
        rotary = RotaryTable(model.rope, model.head_dim, model.context_length, self._device)
        context = AttentionContext(model, part.begin, pool, rotary)
        with self._device_of_thread():
            attention = make_attention(context)
        stack = compute.stack(weights, attention, context, adapters)
        workspace = Workspace(model, self._dtype) if compute.reuse_buffers and stack is None else None
        step: StepAdapters | None = None
        if stack is None and adapters.numbers:
            step = StepAdapters()
            weights = adapted(weights, adapters, step)
        decoder = Decoder(model, part.begin, weights, attention, compute.ops, workspace, stack, step)
        return decoder, self._graphs(decoder, attention, context, most_rows)

    def _mover(self, pool: KvPool) -> BlockMover | None:
        """To and from the second tier, if there is one. What worked at the start may not work later: then the
        stage goes on without."""
        if self._offload is None:
            return None
        try:
            with self._device_of_thread():
                tier = open_tier(pool, self._offload, self._device)
                return BlockMover(pool, tier, copies_for(self._device).finish)
        except (OSError, RuntimeError, OffloadError) as error:
            _log.warning("no second tier of KV blocks", reason=str(error))
            return None

    def _lose_tier(self) -> None:
        self._offload = None

    def _graphs(
        self, decoder: Decoder, attention: AttentionBackend, context: AttentionContext, most_rows: int
    ) -> DecodeGraphs | None:
        """CUDA graphs for decode steps, where device and attention can have them."""
        if self._device.type != "cuda" or os.environ.get(GRAPHS_SWITCH) == "0":
            return None
        if not isinstance(attention, StaticBackend):
            return None
        # Graphs keep the table's address, so it must not grow any more.
        context.rotary.reserve(context.spec.context_length)
        with self._device_of_thread():
            return capture_decode(
                decoder, attention, context.pool, context.spec.hidden, most_rows, CudaCapture(self._device)
            )

    def _device_of_thread(self) -> AbstractContextManager[object]:
        """Makes the device the present one of this thread, as libraries and graphs want it."""
        return nullcontext() if self._device.type == "cpu" else torch.cuda.device(self._device)

    def _stage_adapters(self, part: StageSlice, weight_bytes: int) -> StageAdapters:
        if self._adapters is None or self._adapters[0] != part:
            self._adapters = None
            self._check_adapters(part, weight_bytes)
            spec, dtype = self._checkpoint.spec, self._adapter_dtype
            loaded = load_adapters(self._adapter_folders, spec, part, dtype, self._device)
            self._adapters = part, loaded
        return self._adapters[1]

    @property
    def _adapter_dtype(self) -> torch.dtype:
        # On a CPU in float32, as PEFT computes them beside weights of any type.
        return torch.float32 if self._device.type == "cpu" else self._dtype

    def _check_adapters(self, part: StageSlice, weight_bytes: int) -> None:
        """Raise ConfigError if they do not fit into memory, before they are read."""
        needed = adapter_bytes(self._adapter_folders, part, self._adapter_dtype)
        budget = self.description.memory_budget
        if weight_bytes + needed > budget:
            raise ConfigError(
                f"a memory budget of {budget} bytes is too small: {weight_bytes} bytes of weights and "
                f"{needed} of adapters, without a KV block yet; raise it, give fewer adapters, or split "
                "the model over more stages"
            )

    def _weights(self, part: StageSlice) -> StageWeights | LibraryStage:
        if self._loaded is None or self._loaded[0] != part:
            # Freed first: old and new weights together might not fit.
            self._loaded = None
            try:
                weights = self._read(part)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"layers {part.begin} to {part.end - 1} do not fit into the memory of {self._device}; "
                    f"split the model over more stages ({error})"
                ) from error
            self._loaded = (part, weights)
            return_freed()
        return self._loaded[1]

    def _read(self, part: StageSlice) -> StageWeights | LibraryStage:
        if self._library is not None:
            stage = self._library.load(part, self._dtype, self._device, products_of(self._compute))
            if self._adapter_folders:
                self._check_adapters(part, stage.nbytes)
                stage.attach(self._adapter_folders, self._adapter_dtype, self._device)
            return stage
        return load_stage(
            self._checkpoint,
            part,
            self._dtype,
            self._device,
            self._compute.linear,
            self._compute.head,
            self._compute.share_ends,
        )


def _check(spec: StageSpec, layers: int) -> None:
    """Raise ConfigError for a stage that is no part of a pipeline over `layers` layers."""
    problem = None
    layer_range = f"layers {spec.layer_begin} to {spec.layer_end} of {layers}"
    if not 0 <= spec.index < spec.count:
        problem = f"stage {spec.index} of {spec.count}"
    elif not 0 <= spec.layer_begin < spec.layer_end <= layers:
        problem = layer_range
    elif spec.first != (spec.layer_begin == 0) or spec.last != (spec.layer_end == layers):
        problem = f"stage {spec.index} of {spec.count} with {layer_range}"
    elif spec.block_size < 1 or spec.max_step_tokens < 1 or spec.kv_blocks < 0:
        problem = ", ".join(
            f"{name} {value}"
            for name, value in dataclasses.asdict(spec).items()
            if name in ("block_size", "max_step_tokens", "kv_blocks")
        )
    if problem is not None:
        raise ConfigError(f"a stage cannot be configured so: {problem}")


def _sampler_of(model: Path) -> SamplerFactory:
    def make(vocab_size: int, device: torch.device) -> StepSampler:
        from stage_worker.sampling.sampler import Sampler
        from tidepipe_common.structures.state import Grammars
        from tidepipe_common.structures.tokenizer_file import read_tokenizer

        return Sampler(vocab_size, device, Grammars(partial(read_tokenizer, model), vocab_size))

    return make
