"""A model's weights on disk, whatever the format: tensors by their Hugging Face names, read in pieces."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from stage_worker.models.packed import PackedWeight
from stage_worker.models.spec import ModelSpec
from tidepipe_common.errors import ModelError
from tidepipe_common.regular_files import open_file

RawRows = npt.NDArray[np.uint8]
RowDecoder = Callable[[RawRows], torch.Tensor]
"""Turns raw rows, uint8 [rows, row bytes], into values [rows, columns] of any floating-point type."""

_PIECE_BYTES = 4 << 20
_SAMPLES = 4
_SAMPLE_BYTES = 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    name: as the file calls it. kind: how its values are stored. offset, nbytes: in the file.
    interleaved_head_dim: if not 0, the rows of each head are in llama.cpp's order (pairs of dimensions
    side by side) instead of Hugging Face's (halves).
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int
    decode: RowDecoder
    interleaved_head_dim: int = 0

    @property
    def rows(self) -> int:
        """Length of the first dimension; a vector counts as one row, unless its entries must be reordered."""
        return self.shape[0] if len(self.shape) > 1 or self.interleaved_head_dim else 1

    def raw(self) -> torch.Tensor:
        """All bytes, [rows, row bytes]."""
        raw = np.empty((self.rows, self.nbytes // self.rows), dtype=np.uint8)
        with _opened(self.file) as handle:
            handle.seek(self.offset)
            _fill(handle, raw, self)
        return torch.from_numpy(raw)

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """All values, which are stored as `dtype`."""
        return self.raw().flatten().view(dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight of few bits, whose codes and scales lie in one or more tensors.

    parts: by the ends of their names. shape: outputs and inputs. names: of all tensors that belong to it,
    used or not, as in Checkpoint.tensors. make: reads the parts. interleaved_head_dim: as in StoredTensor.
    """

    parts: Mapping[str, StoredTensor]
    shape: tuple[int, int]
    names: frozenset[str]
    make: Callable[[Mapping[str, StoredTensor]], PackedWeight]
    interleaved_head_dim: int = 0

    @property
    def first(self) -> StoredTensor:
        """One of its tensors, to be named in messages."""
        return next(iter(self.parts.values()))

    def read(self) -> PackedWeight:
        """The weight, packed as it is; ModelError if it cannot be read."""
        try:
            weight = self.make(self.parts)
        except ValueError as error:
            raise ModelError(
                f"{self.first.file}: the weight of tensor {self.first.name} cannot be decoded ({error})"
            ) from error
        if not self.interleaved_head_dim:
            return weight
        rows = torch.arange(self.shape[0]).unsqueeze(1)
        return weight.taken(_halves_apart(rows, self.interleaved_head_dim).flatten())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. No file stays open or mapped between reads: mapped pages would count as memory.

    tensors: by Hugging Face name, such as model.layers.0.self_attn.q_proj.weight.
    packed: weights that are kept as codes, by such names. stacks: likewise weights of all experts of a layer
    in one tensor, expert by expert. quantization: how they were written, in words.
    library_config: config.json of a model that the transformers library's code computes; its tensors have
    their files' own names. None: TidePipe's code does.
    """

    path: Path
    spec: ModelSpec
    tensors: Mapping[str, StoredTensor]
    packed: Mapping[str, StoredWeight] = field(default_factory=dict)
    stacks: Mapping[str, Sequence[StoredWeight]] = field(default_factory=dict)
    quantization: str = ""
    library_config: Mapping[str, Any] | None = None

    @property
    def weights(self) -> list[str]:
        """Names as a checkpoint without quantized weights would have them."""
        several = (one for stack in self.stacks.values() for one in stack)
        parts = {name for stored in (*self.packed.values(), *several) for name in stored.names}
        return [*(name for name in self.tensors if name not in parts), *self.packed, *self.stacks]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of one of `weights`."""
        if name in self.packed:
            return self.packed[name].shape
        if name in self.stacks:
            return (len(self.stacks[name]), *self.stacks[name][0].shape)
        return self.tensors[name].shape

    def packed_weight(self, name: str, shape: tuple[int, int]) -> StoredWeight | None:
        """A weight that is kept as codes, not yet read; None if it is stored as numbers, or missing.

        Raises ModelError if it has another shape.
        """
        stored = self.packed.get(name)
        if stored is not None and stored.shape != shape:
            raise ModelError(
                f"{stored.first.file}: the quantized weight {name} has shape {list(stored.shape)}, the "
                f"configuration asks for {list(shape)}"
            )
        return stored

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor into `target`, which has its shape, converting to the target's type and device.

        Weights that are kept as codes become numbers. A target on the meta device only asks whether that
        would work, without reading the values.
        Raises ModelError, naming file and tensor, if it is missing, misshapen or cannot be read.
        """
        if name in self.packed:
            weight = self.packed_weight(name, (target.shape[0], target.shape[-1]))
            if weight is not None and not target.is_meta:
                target.copy_(weight.read().dequantized(target.dtype))
            return
        stored = self.tensors.get(name)
        if stored is None:
            others = ", ".join(sorted(self.tensors)[:3]) or "none"
            raise ModelError(f"{self.path}: tensor {name} is missing (there are {others}, ..)")
        if stored.shape != tuple(target.shape):
            raise ModelError(
                f"{stored.file}: tensor {stored.name} has shape {list(stored.shape)}, "
                f"the configuration asks for {list(target.shape)}"
            )
        if target.is_meta:
            _decoded(stored, np.zeros((1, stored.nbytes // stored.rows), dtype=np.uint8))
            return
        matrix = target.view(stored.rows, -1)
        row = 0
        for raw in _pieces(stored):
            values = _decoded(stored, raw)
            if stored.interleaved_head_dim:
                values = _halves_apart(values, stored.interleaved_head_dim)
            matrix[row : row + len(values)].copy_(values)
            row += len(values)

    def read_vector(self, name: str) -> tuple[float, ...]:
        """Return a small tensor's values."""
        target = torch.empty(self.tensors[name].shape, dtype=torch.float32)
        self.read_into(name, target)
        return tuple(float(value) for value in target.flatten())

    def fingerprint(self) -> str:
        """Hex digest of configuration, tensor names, shapes and types, and samples of the weights.

        Equal in every process that opens the same files, wherever they lie; a fine-tune differs.
        """
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.spec), sort_keys=True).encode())
        if self.library_config is not None:
            digest.update(json.dumps(self.library_config, sort_keys=True).encode())
        digest.update(self.quantization.encode())
        by_file: dict[Path, list[tuple[str, StoredTensor]]] = {}
        for name in sorted(self.tensors):
            by_file.setdefault(self.tensors[name].file, []).append((name, self.tensors[name]))
        for file in sorted(by_file, key=lambda path: path.name):
            with _opened(file) as handle:
                for name, stored in by_file[file]:
                    digest.update(f"{name} {stored.shape} {stored.kind}\n".encode())
                    for part in range(_SAMPLES):
                        start = (stored.nbytes - min(stored.nbytes, _SAMPLE_BYTES)) * part // (_SAMPLES - 1)
                        handle.seek(stored.offset + start)
                        digest.update(handle.read(min(stored.nbytes, _SAMPLE_BYTES)))
        return digest.hexdigest()


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same values; stops at the first difference."""
    if one.shape != other.shape or 0 in one.shape:
        return one.shape == other.shape
    return all(
        torch.equal(_decoded(one, first).double(), _decoded(other, second).double())
        for first, second in zip(_pieces(one), _pieces(other), strict=True)
    )


def _decoded(stored: StoredTensor, raw: RawRows) -> torch.Tensor:
    try:
        return stored.decode(raw)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{stored.file}: tensor {stored.name} of type {stored.kind} cannot be decoded ({error})"
        ) from error


def _opened(file: Path) -> BinaryIO:
    try:
        # Unbuffered: reads are few and large, or (samples) far apart.
        return open_file(file, buffering=0)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error


def _pieces(stored: StoredTensor) -> Iterator[RawRows]:
    """Read a tensor's rows in pieces that bound the memory needed besides the target."""
    columns = math.prod(stored.shape) // stored.rows
    step = max(1, _PIECE_BYTES // (4 * columns))
    if stored.interleaved_head_dim:
        step = max(1, step // stored.interleaved_head_dim) * stored.interleaved_head_dim
    row_bytes = stored.nbytes // stored.rows
    with _opened(stored.file) as handle:
        handle.seek(stored.offset)
        for first in range(0, stored.rows, step):
            raw = np.empty((min(step, stored.rows - first), row_bytes), dtype=np.uint8)
            _fill(handle, raw, stored)
            yield raw


def _fill(handle: BinaryIO, raw: RawRows, stored: StoredTensor) -> None:
    view = raw.data.cast("B")
    while view:
        # A raw file may give less than asked for (about 2 GiB at most on Linux).
        count = handle.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise ModelError(f"{stored.file}: cut short within tensor {stored.name}")
        view = view[count:]


def _halves_apart(values: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undo llama.cpp's row order of query and key weights: [rows, columns] to the same in halves per head."""
    rows, columns = values.shape
    pairs = values.view(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
