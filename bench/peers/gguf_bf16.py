"""A block-quantized GGUF as bfloat16, so that llama.cpp computes with the same numbers as the others."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_OWN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def convert(source: Path, target: Path) -> None:
    """Write `target`: matrices in bfloat16, vectors in float32, everything else as in `source`."""
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    half = target.with_suffix(".part")
    writer = gguf.GGUFWriter(half, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for field in reader.fields.values():
        if not field.name.startswith(_OWN):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner[-1] if inner else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim > 1:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    half.rename(target)
