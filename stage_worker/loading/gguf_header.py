"""The header of a GGUF file: metadata and where each tensor lies.

`gguf.GGUFReader` makes Python objects of every vocabulary entry (seconds, and more memory than a small
model's weights), although a stage needs none of them. This reader steps over such arrays.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from stage_worker.loading.tensor_places import Place, check_places
from tidepipe_common.errors import ModelError
from tidepipe_common.model_source import SPLIT_NAME
from tidepipe_common.regular_files import open_file

_MAGIC = b"GGUF"
_LFS_POINTER = b"vers"
_VERSIONS = (2, 3)
_LONGEST_ARRAY = 4096
_LONGEST_STRING = 1 << 26
_MOST_STRINGS = 1 << 22
_MOST_ENTRIES = 1 << 20
_MOST_DIMENSIONS = 4
_MOST_FILES = 1024
_SPLIT_COUNT = "split.count"
_SPLIT_TENSORS = "split.tensors.count"

_SCALARS: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array of texts, or a long one: only its length is known."""

    length: int


MetadataValue = int | float | bool | str | list[int | float | bool] | SkippedArray


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. shape: outermost dimension first. offset, nbytes: in the file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the weights; of a split model, that of its first file and the tensors of all."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a model, whose other files lie beside it if it is split.

    Raises ModelError if a file is not GGUF, damaged, cut short or missing.
    """
    first = _read_one(path)
    count = first.metadata.get(_SPLIT_COUNT, 1)
    if not isinstance(count, int) or count <= 1:
        return first
    name = SPLIT_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count or count > _MOST_FILES:
        raise ModelError(
            f"{path}: one of {count} files of a split model, but not named so; "
            f"name them NAME-00001-of-{count:05d}.gguf and so on"
        )
    if int(name["number"]) != 1:
        raise ModelError(f"{path}: part {int(name['number'])} of a split model; give its first part instead")
    tensors = dict(first.tensors)
    for number in range(2, count + 1):
        part = path.with_name(f"{name['stem']}-{number:05d}-of-{count:05d}.gguf")
        if not part.exists():
            raise ModelError(f"{part}: is missing, though {path.name} says that the model has {count} parts")
        tensors.update(_read_one(part).tensors)
    total = first.metadata.get(_SPLIT_TENSORS, len(tensors))
    if total != len(tensors):
        raise ModelError(f"{path}: its {count} parts have {len(tensors)} tensors, but should have {total}")
    return GgufHeader(path, first.metadata, tensors)


def _read_one(path: Path) -> GgufHeader:
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            return _Parser(path, file, size).header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size

    def header(self) -> GgufHeader:
        magic = self._bytes(4)
        if magic == _LFS_POINTER:
            raise ModelError(
                f"{self._path}: only a Git LFS pointer, not the weights; fetch them: git lfs pull"
            )
        if magic != _MAGIC:
            raise ModelError(f"{self._path}: not a GGUF file")
        version = self._integer("<I")
        if version.to_bytes(4, "big")[0] in _VERSIONS:
            raise ModelError(f"{self._path}: written for big-endian machines, which is not supported")
        if version not in _VERSIONS:
            raise ModelError(
                f"{self._path}: GGUF version {version} is not supported (little-endian 2 or 3 is)"
            )
        tensor_count = self._count("tensors")
        key_count = self._count("metadata keys")
        metadata: dict[str, MetadataValue] = {}
        for _ in range(key_count):
            key = self._string()
            metadata[key] = self._value(key, self._value_type())
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self._path}: alignment {alignment!r} makes no sense")
        start = -(-self._file.tell() // alignment) * alignment
        tensors = {
            name: self._located(name, shape, kind, start + offset) for name, shape, kind, offset in entries
        }
        places = (Place(one.offset, one.nbytes, one.name) for one in tensors.values())
        check_places(self._path, self._size, places)
        return GgufHeader(self._path, metadata, tensors)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        dimensions = self._integer("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ModelError(f"{self._path}: tensor {name} has {dimensions} dimensions")
        # GGUF lists the innermost dimension first.
        shape = tuple(self._integer("<Q") for _ in range(dimensions))[::-1]
        number = self._integer("<I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise ModelError(f"{self._path}: tensor {name} has unknown type {number}") from error
        return name, shape, kind, self._integer("<Q")

    def _located(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, offset: int
    ) -> GgufTensor:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or 0 in shape or shape[-1] % block:
            raise ModelError(f"{self._path}: tensor {name}: shape {shape} does not fit type {kind.name}")
        nbytes = math.prod(shape) // block * block_bytes
        return GgufTensor(self._path, name, shape, kind, offset, nbytes)

    def _value(self, key: str, kind: GGUFValueType) -> MetadataValue:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        item = self._value_type()
        length = self._integer("<Q")
        if item == GGUFValueType.STRING:
            if self._plausible(length, 8, key) > _MOST_STRINGS:
                raise ModelError(f"{self._path}: damaged: metadata {key} claims {length} entries")
            for _ in range(length):
                self._skip(self._integer("<Q"))
            return SkippedArray(length)
        if item == GGUFValueType.ARRAY:
            raise ModelError(f"{self._path}: metadata {key}: arrays of arrays are not supported")
        layout = _SCALARS[item]
        width = struct.calcsize(layout)
        self._plausible(length, width, key)
        if length > _LONGEST_ARRAY:
            self._skip(length * width)
            return SkippedArray(length)
        return [self._scalar(layout) for _ in range(length)]

    def _plausible(self, length: int, width: int, key: str) -> int:
        if length * width > self._size:
            raise ModelError(f"{self._path}: damaged: metadata {key} claims {length} entries")
        return length

    def _value_type(self) -> GGUFValueType:
        number = self._integer("<I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise ModelError(f"{self._path}: damaged: unknown metadata type {number}") from error

    def _count(self, what: str) -> int:
        count = self._integer("<Q")
        if count > _MOST_ENTRIES:
            raise ModelError(f"{self._path}: damaged: claims {count} {what}")
        return count

    def _string(self) -> str:
        length = self._integer("<Q")
        if length > min(_LONGEST_STRING, self._size):
            raise ModelError(f"{self._path}: damaged: claims a string of {length} bytes")
        return self._bytes(length).decode("utf-8", errors="replace")

    def _integer(self, layout: str) -> int:
        return int(self._scalar(layout))

    def _scalar(self, layout: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]
        return value

    def _skip(self, count: int) -> None:
        if count > self._size:
            raise ModelError(f"{self._path}: damaged: claims a string of {count} bytes")
        self._file.seek(count, 1)

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ModelError(f"{self._path}: cut short within its header")
        return data
