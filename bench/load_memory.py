"""What loading a checkpoint takes beside the weights themselves, stage by stage.

    python -m bench.load_memory PLACE [--stages 2] [--make GB] [--kind gptq] [--quantization int8]

Each stage is loaded in a process of its own: the most memory it ever had, beside what it had before it loaded
anything (PyTorch, the transformers library) and the part of the weights that is its own. --make first writes
a model with random weights to PLACE, of about so many gigabytes: a mixture of experts, which the transformers
library's code computes, or a Llama, plain or in one of the formats of quantized checkpoints; of GGUF PLACE is
a file. All layers of a Llama are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 2**20
HIDDEN, INNER, EXPERTS, HEADS, KV_HEADS, VOCABULARY = 1024, 3584, 8, 16, 4, 32_000


def make(folder: Path, gigabytes: float) -> None:
    """A Mixtral with random bfloat16 weights, a shard for each layer."""
    import torch
    from safetensors.torch import save_file

    def values(*shape: int) -> torch.Tensor:
        return (torch.rand(shape) - 0.5).mul_(0.05).to(torch.bfloat16)

    expert = 3 * HIDDEN * INNER
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * HIDDEN) / (EXPERTS * expert)))
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    head = HIDDEN // HEADS
    where: dict[str, str] = {}

    def write(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name)
        where.update(dict.fromkeys(tensors, name))

    for layer in range(layers):
        start = f"model.layers.{layer}."
        tensors = {
            f"{start}input_layernorm.weight": values(HIDDEN),
            f"{start}post_attention_layernorm.weight": values(HIDDEN),
            f"{start}self_attn.q_proj.weight": values(HEADS * head, HIDDEN),
            f"{start}self_attn.k_proj.weight": values(KV_HEADS * head, HIDDEN),
            f"{start}self_attn.v_proj.weight": values(KV_HEADS * head, HIDDEN),
            f"{start}self_attn.o_proj.weight": values(HIDDEN, HEADS * head),
            f"{start}block_sparse_moe.gate.weight": values(EXPERTS, HIDDEN),
        }
        for number in range(EXPERTS):
            inside = f"{start}block_sparse_moe.experts.{number}."
            tensors[f"{inside}w1.weight"] = values(INNER, HIDDEN)
            tensors[f"{inside}w2.weight"] = values(HIDDEN, INNER)
            tensors[f"{inside}w3.weight"] = values(INNER, HIDDEN)
        write(layer + 1, tensors)
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    write(
        layers + 1,
        {name: values(VOCABULARY, HIDDEN) for name in ends} | {"model.norm.weight": values(HIDDEN)},
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


LLAMA_HIDDEN, LLAMA_INNER = 2048, 5632
_PARTS = {
    "q_proj": ("self_attn", "attn_q", HEADS * LLAMA_HIDDEN // HEADS, LLAMA_HIDDEN),
    "k_proj": ("self_attn", "attn_k", KV_HEADS * LLAMA_HIDDEN // HEADS, LLAMA_HIDDEN),
    "v_proj": ("self_attn", "attn_v", KV_HEADS * LLAMA_HIDDEN // HEADS, LLAMA_HIDDEN),
    "o_proj": ("self_attn", "attn_output", LLAMA_HIDDEN, LLAMA_HIDDEN),
    "gate_proj": ("mlp", "ffn_gate", LLAMA_INNER, LLAMA_HIDDEN),
    "up_proj": ("mlp", "ffn_up", LLAMA_INNER, LLAMA_HIDDEN),
    "down_proj": ("mlp", "ffn_down", LLAMA_HIDDEN, LLAMA_INNER),
}
"""Products of a layer: where they are in a folder and in a GGUF file, outputs, inputs."""
_GGUF_KINDS = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")


def make_llama(folder: Path, gigabytes: float, kind: str) -> None:
    """A Llama, a shard for each layer, its layers' products in a format of `bench.quantized_checkpoints`."""
    import torch
    from safetensors.torch import save_file

    from bench.quantized_checkpoints import FORMATS

    def values(*shape: int) -> torch.Tensor:
        return (torch.rand(shape) - 0.5).mul_(0.05).to(torch.bfloat16)

    layer = {
        f"{name}.weight": values(LLAMA_HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")
    }
    for name, (place, _, outputs, inputs) in _PARTS.items():
        weight = values(outputs, inputs)
        parts = {"weight": weight} if kind == "llama" else FORMATS[kind][0](weight)[0]
        layer |= {f"{place}.{name}.{end}": part.contiguous() for end, part in parts.items()}
    each = sum(tensor.nbytes for tensor in layer.values())
    layers = max(2, round((gigabytes * 1e9 - 4 * VOCABULARY * LLAMA_HIDDEN) / each))
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": LLAMA_HIDDEN,
        "intermediate_size": LLAMA_INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if kind != "llama":
        config["quantization_config"] = FORMATS[kind][1]
    (folder / "config.json").write_text(json.dumps(config))
    where: dict[str, str] = {}
    ends = {
        name: values(VOCABULARY, LLAMA_HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    for number in range(layers + 1):
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        tensors = {f"model.layers.{number}.{key}": tensor for key, tensor in layer.items()}
        if number == layers:
            tensors = ends | {"model.norm.weight": values(LLAMA_HIDDEN)}
        save_file(tensors, folder / name)
        where.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def make_gguf(path: Path, gigabytes: float, kind: str) -> None:
    """The same as a GGUF file, all matrices in blocks of one kind; any bits, but scales that are small."""
    import gguf
    import numpy as np

    type_ = gguf.GGMLQuantizationType[kind]
    values, size = gguf.constants.GGML_QUANT_SIZES[type_]
    chance = np.random.default_rng(0)

    def blocks(outputs: int, inputs: int) -> Any:
        raw = chance.integers(0, 256, (outputs, inputs // values, size), dtype=np.uint8)
        for at in {"Q6_K": (208,), "Q4_K": (0, 2)}.get(kind, (0,)):
            raw[:, :, at : at + 2] = np.full((outputs, inputs // values, 1), 1e-4, np.float16).view(np.uint8)
        return raw.reshape(outputs, -1)

    layer = {name: blocks(outputs, inputs) for _, name, outputs, inputs in _PARTS.values()}
    ends = {name: blocks(VOCABULARY, LLAMA_HIDDEN) for name in ("token_embd", "output")}
    norm = np.ones(LLAMA_HIDDEN, np.float32)
    each = sum(raw.nbytes for raw in layer.values())
    layers = max(2, round((gigabytes * 1e9 - sum(raw.nbytes for raw in ends.values())) / each))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(LLAMA_HIDDEN)
    writer.add_feed_forward_length(LLAMA_INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    for name, raw in ends.items():
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=type_)
    writer.add_tensor("output_norm.weight", norm)
    for number in range(layers):
        for name, raw in layer.items():
            writer.add_tensor(f"blk.{number}.{name}.weight", raw, raw_dtype=type_)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{number}.{name}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peak_mib() -> float:
    """The most resident memory that this process ever had; getrusage would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def load(model: str, index: int, count: int, dtype: str, quantization: str | None) -> dict[str, Any]:
    """Load one stage here."""
    from stage_worker.executors.protocol import StageSpec
    from stage_worker.executors.torch_backend import TorchBackend

    backend = TorchBackend(model, device="cpu", dtype=dtype, quantization=quantization, threads=1)
    layers = backend.description.shape.layers
    before = peak_mib()
    begin, end = (number * layers // count for number in (index, index + 1))
    executor = backend.configure(StageSpec(index, count, begin, end, 16, 16, 256))
    own = executor.weight_bytes / MIB
    return {
        "stage": index,
        "layers": end - begin,
        "weights_mib": round(own),
        "before_mib": round(before),
        "peak_mib": round(peak_mib()),
        "beyond_weights": round((peak_mib() - before) / own - 1, 3),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from bench.quantized_checkpoints import FORMATS

    parser.add_argument("place")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", help="as for tidepipe up")
    parser.add_argument("--make", type=float, metavar="GB")
    parser.add_argument("--kind", choices=["mixtral", "llama", *FORMATS, *_GGUF_KINDS], default="mixtral")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        loaded = load(options.place, options.only, options.stages, options.dtype, options.quantization)
        print(json.dumps(loaded))
        return
    if options.make:
        place = Path(options.place)
        if options.kind == "mixtral":
            make(place, options.make)
        elif options.kind in _GGUF_KINDS:
            make_gguf(place, options.make, options.kind)
        else:
            make_llama(place, options.make, options.kind)
    for index in range(options.stages):
        arguments = [options.place, "--stages", str(options.stages), "--dtype", options.dtype]
        if options.quantization:
            arguments += ["--quantization", options.quantization]
        command = [sys.executable, "-m", "bench.load_memory", *arguments, "--only", str(index)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
