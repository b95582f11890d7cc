"""Opens adapters (LoRA) as PEFT saves them, checks them against the base, and reads one stage's part."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from stage_worker.loading.checkpoint import Checkpoint, StoredTensor
from stage_worker.loading.safetensors_folder import read_header
from stage_worker.loading.stage_weights import StageSlice
from stage_worker.models.adapters import AdaptedLinear, LayerAdapters, LowRank, StageAdapters, StepAdapters
from stage_worker.models.spec import ModelSpec
from stage_worker.models.weights import LayerWeights, StageWeights
from tidepipe_common.adapter_config import (
    MAX_ADAPTER_BYTES,
    MAX_RANK,
    MERGE,
    WEIGHTS,
    AdapterConfig,
    read_adapter_config,
)
from tidepipe_common.errors import ModelError
from tidepipe_common.regular_files import open_file
from tidepipe_common.settings.adapters import AdapterPlace
from tidepipe_common.text.text import quoted

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.{1,200}?)\.lora_([AB])(?:\.[^.]{1,100})?\.weight")
_KINDS = ("F32", "F16", "BF16", "F64")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One adapted product: x A^T B^T scale is added. down: A [rank, in]; up: B [out, rank]."""

    down: StoredTensor
    up: StoredTensor
    scale: float

    @property
    def rank(self) -> int:
        """Values between the two."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An opened adapter. modules: by their names in the whole model.

    fingerprint: 32 hex digits, of everything that its results depend on beside the base, and not of its name.
    """

    name: str
    fingerprint: str
    modules: Mapping[str, AdaptedModule]
    reader: Checkpoint

    def read(self, stored: StoredTensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One of its tensors."""
        target = torch.empty(stored.shape, dtype=dtype, device=device)
        self.reader.read_into(stored.name, target)
        return target


def _itself(name: str) -> str:
    return name


@dataclass(frozen=True, slots=True)
class Adaptable:
    """The products of a base that adapters may change.

    shapes: [out, in] of each, by its name in the whole model. renamed: makes such a name of what it is called
    in checkpoints, by which adapters may go.
    """

    shapes: Mapping[str, tuple[int, int]]
    renamed: Callable[[str], str] = _itself

    def find(self, module: str) -> str | None:
        """The name of a product that an adapter calls so."""
        # Adapters of a bare model leave its prefix out.
        names = (module, f"model.{module}", self.renamed(module))
        return next((name for name in names if name in self.shapes), None)


def open_adapter(place: AdapterPlace, spec: ModelSpec, base: Adaptable) -> AdapterFolder:
    """Open PEFT's folder; ModelError, which names the adapter, for whatever does not fit."""
    try:
        config = read_adapter_config(place.folder)
        return _opened(place.name, config, spec, base)
    except ModelError as error:
        raise ModelError(f"adapter {place.name}: {error}") from error


def _opened(name: str, config: AdapterConfig, spec: ModelSpec, base: Adaptable) -> AdapterFolder:
    file = config.folder / WEIGHTS
    if (size := file.stat().st_size) > MAX_ADAPTER_BYTES:
        raise ModelError(f"{file}: has {size} bytes, of {MAX_ADAPTER_BYTES} that an adapter may have")
    tensors = read_header(file)
    halves: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors.values():
        module, half = _module_of(file, tensor.name, config, base)
        halves.setdefault(module, {})[half] = tensor
    modules = {module: _checked(file, module, both, config, base.shapes) for module, both in halves.items()}
    if not modules:
        raise ModelError(f"{file}: has no tensors")
    adapted = {module.rpartition(".")[2] for module in modules}
    if config.targets is not None and (missing := config.targets - adapted):
        raise ModelError(
            f"{file}: has nothing of {', '.join(sorted(missing)[:5])}, which target_modules names"
        )
    return AdapterFolder(name, _fingerprint(file, modules), modules, Checkpoint(config.folder, spec, tensors))


def _module_of(file: Path, name: str, config: AdapterConfig, base: Adaptable) -> tuple[str, str]:
    """The module that a tensor adapts, and which half of it it is: A or B."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise ModelError(
            f"{file}: tensor {quoted(name)} is no part of LoRA for a product of the layers (embeddings, the "
            f"LM head and whole modules are not served); {MERGE}"
        )
    module = base.find(match[1])
    if module is None:
        kinds = sorted({one.rpartition(".")[2] for one in base.shapes})
        last = match[1].rpartition(".")[2]
        why = "the base has no such layer; is the adapter for another one?"
        if last not in kinds:
            why = f"only {', '.join(kinds)} of the base's layers can be adapted; {MERGE}"
        raise ModelError(f"{file}: adapts {quoted(match[1])}, but {why}")
    if not config.covers(module, match[1]):
        raise ModelError(
            f"{file}: adapts {quoted(match[1])}, which target_modules and layers_to_transform of its "
            "configuration do not name: the two are not of one adapter; save it anew"
        )
    return module, match[2]


def _checked(
    file: Path,
    module: str,
    halves: Mapping[str, StoredTensor],
    config: AdapterConfig,
    shapes: Mapping[str, tuple[int, int]],
) -> AdaptedModule:
    for half in "AB":
        if half not in halves:
            raise ModelError(f"{file}: lora_{half} of {module} is missing")
    down, up = halves["A"], halves["B"]
    if strange := next((one for one in (down, up) if one.kind not in _KINDS), None):
        raise ModelError(f"{file}: tensor {strange.name} has type {strange.kind}, not {' or '.join(_KINDS)}")
    outputs, inputs = shapes[module]
    rank = down.shape[0] if len(down.shape) == 2 else 0
    if not 1 <= rank <= MAX_RANK or rank != config.rank_of(module):
        raise ModelError(
            f"{file}: tensor {down.name} has shape {list(down.shape)}, but its rank is to be "
            f"{config.rank_of(module)} (r and rank_pattern of the configuration; {MAX_RANK} at most)"
        )
    for stored, wanted in ((down, (rank, inputs)), (up, (outputs, rank))):
        if stored.shape != wanted:
            base = f" (it names {quoted(config.base)})" if config.base else ""
            raise ModelError(
                f"{file}: tensor {stored.name} has shape {list(stored.shape)}, this base asks for "
                f"{list(wanted)}; the adapter was made for another base{base}"
            )
    return AdaptedModule(down, up, config.scale_of(module))


def _fingerprint(file: Path, modules: Mapping[str, AdaptedModule]) -> str:
    digest = hashlib.blake2b(digest_size=16, person=b"adapter")
    for name in sorted(modules):
        digest.update(f"{name} {modules[name].scale!r}\n".encode())
    try:
        with open_file(file) as handle:
            while piece := handle.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def adaptable(spec: ModelSpec) -> Adaptable:
    """The decoder's products."""
    kinds = {kind: (parts, inputs) for kind, parts, inputs in _products(spec)}
    return Adaptable(
        {
            f"model.layers.{layer}.{name}": (outputs, inputs)
            for layer in range(spec.layers)
            for parts, inputs in kinds.values()
            for name, outputs in parts
        }
    )


def _products(spec: ModelSpec) -> Sequence[tuple[str, Sequence[tuple[str, int]], int]]:
    """The products of a layer as the decoder has them: (field, parts with their outputs, inputs)."""
    heads = (("q_proj", spec.query_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size))
    return (
        ("qkv", [(f"self_attn.{name}", size) for name, size in heads], spec.hidden),
        ("output", [("self_attn.o_proj", spec.hidden)], spec.query_size),
        ("gate_up", [(f"mlp.{name}", spec.intermediate) for name in ("gate_proj", "up_proj")], spec.hidden),
        ("down", [("mlp.down_proj", spec.hidden)], spec.intermediate),
    )


def adapter_bytes(folders: Iterable[AdapterFolder], part: StageSlice, dtype: torch.dtype) -> int:
    """What a stage's part of them will take."""
    values = sum(
        math.prod(stored.shape)
        for folder in numbered(folders)
        for name, module in folder.modules.items()
        if part.begin <= _layer_of(name) < part.end
        for stored in (module.down, module.up)
    )
    return values * dtype.itemsize


def _layer_of(module: str) -> int:
    """The first number in its name."""
    return int(next(part for part in module.split(".") if part.isdecimal()))


def numbered(folders: Iterable[AdapterFolder]) -> list[AdapterFolder]:
    """One of each content, in the order of their numbers, which begin with 1."""
    return list({folder.fingerprint: folder for folder in folders}.values())


def numbers(distinct: Iterable[AdapterFolder]) -> dict[str, int]:
    """Numbers by fingerprint."""
    return {folder.fingerprint: number for number, folder in enumerate(distinct, start=1)}


def low_rank(
    folder: AdapterFolder, parts: Iterable[tuple[int, str]], dtype: torch.dtype, device: torch.device
) -> LowRank | None:
    """What an adapter adds to a product; None: nothing. parts: (first output there, name) of those in it."""
    pieces = []
    for begin, name in parts:
        if (module := folder.modules.get(name)) is not None:
            down = folder.read(module.down, dtype, device)
            up = folder.read(module.up, torch.float32, device).mul_(module.scale).to(dtype)
            pieces.append((begin, down, up))
    return LowRank.of(pieces) if pieces else None


def load_adapters(
    folders: Iterable[AdapterFolder],
    spec: ModelSpec,
    part: StageSlice,
    dtype: torch.dtype,
    device: torch.device,
) -> StageAdapters:
    """A stage's part of them, and nothing else of their files. dtype: in which they are computed."""
    distinct = numbered(folders)

    def one_product(folder: AdapterFolder, layer: int, names: Sequence[tuple[str, int]]) -> LowRank | None:
        begins = accumulate((outputs for _, outputs in names), initial=0)
        parts = [
            (begin, f"model.layers.{layer}.{name}") for begin, (name, _) in zip(begins, names, strict=False)
        ]
        return low_rank(folder, parts, dtype, device)

    return StageAdapters(
        numbers=numbers(distinct),
        layers=tuple(
            LayerAdapters(
                **{
                    kind: tuple(one_product(folder, layer, names) for folder in distinct)
                    for kind, names, _ in _products(spec)
                }
            )
            for layer in range(part.begin, part.end)
        ),
    )


def adapted(weights: StageWeights, adapters: StageAdapters, step: StepAdapters) -> StageWeights:
    """The same weights, with what a step's adapters add. step: tells which rows are whose."""

    def one_layer(layer: LayerWeights, low: LayerAdapters) -> LayerWeights:
        return LayerWeights(
            layer.input_norm,
            AdaptedLinear.around(layer.qkv, low.qkv, step),
            layer.q_norm,
            layer.k_norm,
            AdaptedLinear.around(layer.output, low.output, step),
            layer.mlp_norm,
            AdaptedLinear.around(layer.gate_up, low.gate_up, step),
            AdaptedLinear.around(layer.down, low.down, step),
        )

    layers = tuple(one_layer(*both) for both in zip(weights.layers, adapters.layers, strict=True))
    return StageWeights(layers, weights.embedding, weights.final_norm, weights.head)
