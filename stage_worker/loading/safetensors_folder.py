"""Opens a Hugging Face folder: config.json and one or more safetensors files.

The files are read with plain reads of exactly the bytes wanted. `safetensors.safe_open` maps the file,
and its pages would count as the stage's memory beside the converted weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import ModelError
from stage_worker.loading.checkpoint import Checkpoint, RawRows, RowDecoder, StoredTensor
from stage_worker.loading.hf_config import from_hf_config

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_LARGEST_HEADER = 100 << 20  # the format's own limit
_LARGEST_CONFIG = 16 << 20


def open_safetensors(folder: Path) -> Checkpoint:
    """Open a folder with config.json and *.safetensors; raises ModelError for anything wrong with them."""
    config_file = folder / "config.json"
    generation_file = folder / "generation_config.json"
    config = _json_object(config_file)
    generation_config = _json_object(generation_file) if generation_file.is_file() else None
    spec = from_hf_config(config, generation_config, source=str(config_file))
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        tensors.update(_read_header(file))
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        spec = dataclasses.replace(spec, native_dtype=_stored_dtype(tensors))
    return Checkpoint(folder, spec, tensors)


def _stored_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """The data type of the embedding, for a configuration that does not say."""
    embedding = tensors.get("model.embed_tokens.weight")
    return {"F16": "float16", "BF16": "bfloat16"}.get(embedding.kind if embedding else "", "float32")


def _json_object(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise ModelError(f"{file}: too large")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must be a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, from the index if there is one."""
    index_file = folder / "model.safetensors.index.json"
    if not index_file.is_file():
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder}: has no *.safetensors")
        return files
    weight_map = _json_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_file}: weight_map is missing")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index_file}: {name!r} is not the name of a safetensors file beside it")
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: is missing, though {index_file.name} names it")
    return [folder / name for name in names]


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Read and check the header: 8 bytes of length, JSON, then the tensors' bytes."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise ModelError(f"{file}: not a safetensors file, or cut short")
            header = json.loads(handle.read(length))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{file}: its header is damaged ({error})") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file}: its header is damaged")
    header.pop("__metadata__", None)
    return {name: _stored(file, name, entry, 8 + length, size) for name, entry in header.items()}


def _stored(file: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
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
    if data_start + end > file_size:
        raise ModelError(
            f"{file}: cut short: tensor {name} should end at byte {data_start + end}, the file at {file_size}"
        )
    return StoredTensor(file, name, shape, kind, data_start + begin, end - begin, _decoder(kind, dtype))


def _decoder(kind: str, dtype: torch.dtype | None) -> RowDecoder:
    def decode(raw: RawRows) -> torch.Tensor:
        if dtype is None:
            # Only now: a folder may also hold tensors that the decoder never reads.
            raise ValueError(f"only {', '.join(_DTYPES)} are supported, not {kind}")
        return torch.from_numpy(raw).view(dtype)

    return decode
