"""Opens a Hugging Face folder: config.json and one or more safetensors files.

The files are read with plain reads of exactly the bytes wanted. `safetensors.safe_open` maps the file,
and its pages would count as the stage's memory beside the converted weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stage_worker.loading.checkpoint import (
    Checkpoint,
    RawRows,
    RowDecoder,
    StoredTensor,
    StoredWeight,
    same_values,
)
from stage_worker.loading.model_spec import ModelCode, by_library, folder_spec, read_config
from stage_worker.loading.packed_tensors import find_packed, find_stacks
from stage_worker.loading.quantization_config import read_quantization, without_quantization
from stage_worker.loading.stage_weights import EMBEDDING, HEAD
from stage_worker.loading.tensor_places import Place, check_places
from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import json_object, read_json_object
from tidepipe_common.regular_files import open_file
from tidepipe_common.text.text import quoted

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_LARGEST_HEADER = 100 << 20  # the format's own limit
_BARE = ("embed_tokens.", "layers.", "norm.")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_LONGEST_NAME = 200
_LFS_POINTER = b"version https://git-lfs"


def open_safetensors(folder: Path, model_code: ModelCode = "auto") -> Checkpoint:
    """Open a folder with config.json and *.safetensors; raises ModelError for anything wrong with them."""
    config = read_config(folder)
    spec = folder_spec(folder, config, model_code)
    quantization = read_quantization(config, str(folder / "config.json"))
    if by_library(config, model_code):
        stored = stored_tensors(folder)
        if (config.get("dtype") or config.get("torch_dtype") or "auto") == "auto":
            spec = dataclasses.replace(spec, native_dtype=_most_common_dtype(stored))
        stacks = find_stacks(stored, quantization)
        packed = find_packed(stored, quantization, "config.json")
        said = repr(quantization) if packed or stacks else ""
        return Checkpoint(folder, spec, stored, packed, stacks, said, without_quantization(config))
    tensors = {_with_prefix(name): stored for name, stored in stored_tensors(folder).items()}
    packed = find_packed(tensors, quantization, "config.json")
    spec = dataclasses.replace(spec, tied_embeddings=_tie(tensors, packed, spec.tied_embeddings))
    if (config.get("dtype") or config.get("torch_dtype") or "auto") == "auto":
        spec = dataclasses.replace(spec, native_dtype=_stored_dtype(tensors))
    return Checkpoint(folder, spec, tensors, packed, quantization=repr(quantization) if packed else "")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's files, by the names that they have there."""
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        tensors.update(read_header(file))
    return tensors


def _with_prefix(name: str) -> str:
    """The name in a whole model; files of a bare one (without LM head) leave its prefix out."""
    return f"model.{name}" if name.startswith(_BARE) else name


def _tie(tensors: dict[str, StoredTensor], packed: Mapping[str, StoredWeight], wanted: bool) -> bool:
    """Whether LM head and embedding are one, as transformers decides it; fills in the one that is missing.

    wanted: what the configuration says. If both are stored, and differ, they are two in spite of it.
    """
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if not wanted or HEAD in packed:
        return False
    if embedding is None and head is not None:
        tensors[EMBEDDING] = head
    return embedding is None or head is None or same_values(embedding, head)


def _stored_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """The data type of the embedding, for a configuration that does not say."""
    embedding = tensors.get("model.embed_tokens.weight")
    return {"F16": "float16", "BF16": "bfloat16"}.get(embedding.kind if embedding else "", "float32")


def _most_common_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """The data type of most of the values."""
    sizes: dict[str, int] = {}
    for stored in tensors.values():
        if stored.kind not in _DTYPES:
            continue
        sizes[stored.kind] = sizes.get(stored.kind, 0) + stored.nbytes
    return {"F16": "float16", "BF16": "bfloat16"}.get(
        max(sizes, key=sizes.__getitem__, default=""), "float32"
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: model.safetensors if it is there, else what the index names."""
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    index_file = folder / "model.safetensors.index.json"
    if not index_file.is_file():
        return _unlisted(folder)
    weight_map = read_json_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_file}: weight_map is missing")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or len(name) > _LONGEST_NAME:
            raise ModelError(f"{index_file}: {quoted(name)} is not the name of a safetensors file beside it")
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: is missing, though {index_file.name} names it")
    return [folder / name for name in names]


def _unlisted(folder: Path) -> list[Path]:
    """All *.safetensors of a folder without an index; none of a row of shards may be missing."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: has no *.safetensors")
    present = {file.name for file in files}
    for match in filter(None, map(_SHARD.fullmatch, sorted(present))):
        for number in range(1, min(int(match[3]), len(files) + 1) + 1):
            name = f"{match[1]}-{number:05d}-of-{match[3]}.safetensors"
            if name not in present:
                raise ModelError(f"{folder / name}: is missing, though {match[0]} is one of {int(match[3])}")
    return files


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read and check the header: 8 bytes of length, JSON, then the tensors' bytes."""
    try:
        size = file.stat().st_size
        with open_file(file) as handle:
            start = handle.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise ModelError(f"{file}: only a Git LFS pointer, not the weights; fetch them: git lfs pull")
            handle.seek(8)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise ModelError(f"{file}: not a safetensors file, or cut short")
            raw = handle.read(length)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    header = json_object(raw, f"{file}: its header")
    tensors = {
        name: _stored(file, name, entry, 8 + length)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    check_places(file, size, (Place(one.offset, one.nbytes, one.name) for one in tensors.values()))
    return tensors


def _stored(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        kind = str(entry["dtype"])
        shape = tuple(int(length) for length in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{file}: the header's entry of tensor {name} is damaged") from error
    dtype = _DTYPES.get(kind)
    if begin < 0 or end < begin or min(shape, default=0) < 0:
        raise ModelError(f"{file}: the header's entry of tensor {name} is damaged")
    if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
        raise ModelError(
            f"{file}: tensor {name}: {end - begin} bytes do not fit shape {list(shape)} of {kind}"
        )
    return StoredTensor(file, name, shape, kind, data_start + begin, end - begin, _decoder(kind, dtype))


def _decoder(kind: str, dtype: torch.dtype | None) -> RowDecoder:
    def decode(raw: RawRows) -> torch.Tensor:
        if dtype is None:
            # Only now: a folder may also hold tensors that the decoder never reads.
            raise ValueError(f"only {', '.join(_DTYPES)} are supported, not {kind}")
        return torch.from_numpy(raw).view(dtype)

    return decode
