"""What loading a checkpoint takes beside the weights themselves, stage by stage.

    python -m bench.load_memory FOLDER [--stages 2] [--make GB]

Each stage is loaded in a process of its own: the most memory it ever had, beside what it had before it loaded
anything (PyTorch, the transformers library) and the part of the weights that is its own. --make first writes
a mixture of experts with random weights to FOLDER, of about so many gigabytes.
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


def peak_mib() -> float:
    """The most resident memory that this process ever had; getrusage would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def load(model: str, index: int, count: int, dtype: str) -> dict[str, Any]:
    """Load one stage here."""
    from stage_worker.executors.protocol import StageSpec
    from stage_worker.executors.torch_backend import TorchBackend

    backend = TorchBackend(model, device="cpu", dtype=dtype, threads=1)
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
    parser.add_argument("folder")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--make", type=float, metavar="GB")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(load(options.folder, options.only, options.stages, options.dtype)))
        return
    if options.make:
        make(Path(options.folder), options.make)
    for index in range(options.stages):
        arguments = [options.folder, "--stages", str(options.stages), "--dtype", options.dtype]
        command = [sys.executable, "-m", "bench.load_memory", *arguments, "--only", str(index)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
