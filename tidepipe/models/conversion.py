"""A llama-family GGUF file as a Hugging Face folder: configuration, bf16 safetensors, tokenizer.

Neither torch nor transformers is needed, so that pulling a model takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from tidepipe.models.tokenizer import write_tokenizer
from tidepipe_common.errors import ModelError
from tidepipe_common.gguf_names import hugging_face_name

Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


def convert_to_folder(gguf_file: Path, folder: Path, progress: Progress = lambda done, total: None) -> None:
    """Write the model in `gguf_file` into the existing, empty `folder`.

    ModelError if it is not a llama-family model with a byte-level BPE tokenizer.
    """
    reader = GGUFReader(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama":
        raise ModelError(f"{gguf_file.name}: architecture {metadata['general.architecture']} is not llama")
    config = _config(metadata, tied="output.weight" not in {tensor.name for tensor in reader.tensors})
    _write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    write_tokenizer(metadata, folder)
    _write_weights(reader, config, folder / "model.safetensors", progress)


def _config(metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "head_dim": metadata["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        # GGUF holds float32; the shortest decimal that it stands for is what the model's authors wrote.
        "rms_norm_eps": float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": metadata["llama.vocab_size"],
    }


def _write_weights(reader: GGUFReader, config: dict[str, Any], path: Path, progress: Progress) -> None:
    """Write a safetensors file tensor by tensor: length of the header, header, data."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        begin, end = end, end + 2 * int(np.prod(shape))
        name = _llama_name(tensor.name)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, tensor in enumerate(reader.tensors, start=1):
            weights = dequantize(tensor.data, tensor.tensor_type)
            for kind, count in heads.items():
                if f".{kind}." in tensor.name:
                    weights = _undo_rope_permutation(weights, count)
            file.write(_to_bfloat16(weights).astype("<u2").tobytes())
            progress(done, len(reader.tensors))


def _llama_name(name: str) -> str:
    theirs = hugging_face_name(name)
    # What others of these decoders have, and llama has not: biases, and norms of single heads.
    if theirs is None or theirs.endswith((".bias", "_norm.weight")):
        raise ModelError(f"the model has a tensor that no llama model has: {name}")
    return theirs


def _undo_rope_permutation(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head: put the rows back."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _to_bfloat16(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bf16, ties to even; numpy has no such type, so its bits come as uint16."""
    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
