"""Random adapters as PEFT saves them, and the model that their base becomes when they are merged into it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = ALL,
    layers: Sequence[int] | None = None,
    strength: float = 0.3,
    transposed: bool = False,
    **options: Any,
) -> Path:
    """Write one for the model in `base` to `folder`, and return it. options: of adapter_config.json.

    transposed: the base's weights are [in, out].
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    ranks = options.get("rank_pattern", {})
    tensors = {}
    for name, weight in sorted(weights.items()):
        module = name.removesuffix(".weight")
        match = re.search(r"\.([0-9]+)\..*\.(\w+)$", module)
        if match is None or match[2] not in targets or (layers is not None and int(match[1]) not in layers):
            continue
        outputs, inputs = reversed(weight.shape) if transposed else weight.shape
        r = next((r for key, r in ranks.items() if re.match(rf"(.*\.)?({key})$", module)), rank)
        down = torch.randn(r, inputs, generator=generator) / math.sqrt(inputs)
        up = torch.randn(outputs, r, generator=generator) * strength
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somebody/base",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": transposed,
        **options,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The base's model with W + B A scale in place of W, in float32, written to `folder`."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if (down := tensors.get(f"{PREFIX}{name}.lora_A.weight")) is not None:
                up = tensors[f"{PREFIX}{name}.lora_B.weight"]
                alpha = _by_pattern(config.get("alpha_pattern", {}), name, config["lora_alpha"])
                root = config.get("use_rslora")
                change = up @ down * (alpha / (math.sqrt(len(down)) if root else len(down)))
                module.weight += change.T if config["fan_in_fan_out"] else change
    model.save_pretrained(folder)
    return folder


def _by_pattern(patterns: Mapping[str, Any], name: str, usual: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), usual)
