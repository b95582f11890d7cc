"""Writes a tiny Hugging Face model as GGUF, with llama.cpp's names and row order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.shared_expert.{kind}_proj": f"ffn_{kind}_shexp" for kind in ("gate", "up", "down")},
    **{f"mlp.experts.{kind}_proj": f"ffn_{kind}_exps" for kind in ("gate", "up", "down")},
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of query or key weights as llama.cpp's converter does."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    stem, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer:
        return f"blk.{layer[1]}.{_NAMES[layer[2]]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def _experts_together(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts of a layer in one tensor."""
    together: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors, key=lambda name: [int(one) for one in name.split(".") if one.isdigit()]):
        together.setdefault(re.sub(r"experts\.\d+\.", "experts.", name), []).append(tensors[name])
    return {
        name: torch.stack(several) if ".experts." in name else several[0]
        for name, several in together.items()
    }


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str | None = None,
    rope_divisors: np.ndarray | None = None,
    metadata: Mapping[str, object] | None = None,
    tokens: Sequence[str] | None = (),
) -> Path:
    """Convert the model in `folder`; matrices are stored as `kind`, vectors as float32.

    metadata: more keys, with values of any simple type. tokens: None for a file without a vocabulary.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = architecture or {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    if f"{architecture}.block_count" not in (metadata or {}):
        writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"] == "mistral":
        writer.add_sliding_window(config["sliding_window"])
    if tokens is not None and "tokenizer.ggml.tokens" not in (metadata or {}):
        writer.add_token_list(tokens or [f"token {index}" for index in range(config["vocab_size"])])
    if "tokenizer.ggml.eos_token_id" not in (metadata or {}):
        writer.add_eos_token_id(config["eos_token_id"])
    for key, value in (metadata or {}).items():
        add = {
            bool: writer.add_bool,
            float: writer.add_float32,
            int: writer.add_uint32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", rope_divisors.astype(np.float32))
    for name, tensor in _experts_together(load_file(folder / "model.safetensors")).items():
        values = tensor.to(torch.float32).numpy()
        values = values[0] if "shared_expert_gate" in name else values
        if architecture in ("llama", "smollm3") and re.search(r"\.[qk]_proj\.", name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            values = permute(values, heads)
        if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
        else:
            packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split_gguf(path: Path, parts: int) -> Path:
    """Divide a file's tensors over several, as llama.cpp's tool does. Returns the one with the metadata."""
    reader = gguf.GGUFReader(path)
    each = -(-len(reader.tensors) // parts)
    for number in range(parts):
        name = path.with_name(f"{path.stem}-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(name, "llama")
        if number == 0:
            for key, entry in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    kind = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, entry.contents(), entry.types[0], kind)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * each : (number + 1) * each]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path.unlink()
    return path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")
