"""What PEFT's adapter_config.json says of an adapter (LoRA), and what of it is not served."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import is_there, read_json_object
from tidepipe_common.text.text import quoted

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 512
MAX_ADAPTER_BYTES = 4 << 30
"""Of one adapter's file."""
_MAX_CONFIG_BYTES = 1 << 20
_MAX_PATTERNS = 10_000
_MAX_PATTERN_CHARACTERS = 200
_REPEATS_A_GROUP = re.compile(r"\)\s*[*+?{]")
_MAX_REPETITIONS = 3
_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of initialising that take the adapter's first values out of the base's weights: without those the
adapter means something else."""
_NOT_SERVED: Mapping[str, str] = {
    "use_dora": "it is a DoRA adapter (use_dora), whose weights are not a sum",
    "modules_to_save": "it brings whole modules of its own (modules_to_save)",
    "lora_bias": "its products have biases (lora_bias)",
    "use_qalora": "it is a QA-LoRA adapter (use_qalora)",
    "use_bdlora": "it is a block-diagonal adapter (use_bdlora)",
    "layer_replication": "it repeats layers of the base (layer_replication)",
    "target_parameters": "it adapts bare parameters (target_parameters)",
    "trainable_token_indices": "it trains tokens of the embedding (trainable_token_indices)",
    "alora_invocation_tokens": "it begins in the midst of a prompt (alora_invocation_tokens)",
    "arrow_config": "it chooses among other adapters (arrow_config)",
}
"""Settings that must be unset, false or empty, and what another value means."""
MERGE = "merge it into the base (PEFT's merge_and_unload) and serve the result as a model"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter: to each product x W^T that it adapts comes x A^T B^T times a scale.

    base: as the adapter names it; for people, since folders are called as one likes.
    targets: last parts of the names of adapted modules, as far as a list says them; None: a pattern does.
    layers: numbers of the only layers that are adapted; None: all.
    """

    folder: Path
    base: str
    targets: frozenset[str] | None
    layers: frozenset[int] | None
    rank: int
    alpha: float
    root: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def covers(self, module: str, written: str) -> bool:
        """Whether this module is one that it names. module, written: its whole name, and that in its file."""
        names = {module.rpartition(".")[2], written.rpartition(".")[2]}
        layer = next((int(part) for part in module.split(".") if part.isdecimal()), None)
        return (self.targets is None or not names.isdisjoint(self.targets)) and (
            self.layers is None or layer in self.layers
        )

    def rank_of(self, module: str) -> int:
        """Of a module, by its whole name."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the adapter's product is multiplied by there."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.alpha)
        return float(alpha / (math.sqrt(rank) if self.root else rank))


def read_adapter_config(folder: Path) -> AdapterConfig:
    """From the folder that PEFT saved; ModelError names what is wrong, or not served."""
    file = folder / CONFIG
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder; --lora takes NAME=FOLDER with PEFT's {CONFIG}")
    config = read_json_object(file, _MAX_CONFIG_BYTES)
    _check_kind(file, config)
    if not is_there(folder / WEIGHTS):
        other = "only adapter_model.bin, which is not read: unpickling it could run anything"
        why = other if (folder / "adapter_model.bin").exists() else f"no {WEIGHTS}"
        raise ModelError(f"{folder}: has {why}; save it with PEFT's save_pretrained (safetensors)")
    return AdapterConfig(
        folder=folder,
        base=str(config.get("base_model_name_or_path") or "")[:200],
        targets=_targets(file, config.get("target_modules")),
        layers=_layers(file, config.get("layers_to_transform")),
        rank=int(_number(file, "r", config.get("r"), whole=True)),
        alpha=_number(file, "lora_alpha", config.get("lora_alpha")),
        root=bool(config.get("use_rslora")),
        rank_pattern={
            key: int(_number(file, f"rank_pattern of {quoted(key)}", value, whole=True))
            for key, value in _pattern(file, config, "rank_pattern").items()
        },
        alpha_pattern={
            key: _number(file, f"alpha_pattern of {quoted(key)}", value)
            for key, value in _pattern(file, config, "alpha_pattern").items()
        },
    )


def _check_kind(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{file}: peft_type is {quoted(str(kind))}; only LORA adapters are served")
    if (task := config.get("task_type")) not in _TASKS:
        raise ModelError(f"{file}: task_type is {quoted(str(task))}; only adapters for CAUSAL_LM are served")
    for name, meaning in _NOT_SERVED.items():
        if config.get(name):
            raise ModelError(f"{file}: {meaning}, which is not served; {MERGE}")
    if (bias := config.get("bias") or "none") != "none":
        raise ModelError(f"{file}: it trains biases (bias {quoted(str(bias))}), which is not served; {MERGE}")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_BASE):
        raise ModelError(
            f"{file}: init_lora_weights {quoted(begun)} changes the base's weights, too; save it with "
            "path_initial_model_for_weight_conversion, which makes an ordinary adapter of it"
        )


def _targets(file: Path, value: Any) -> frozenset[str] | None:
    if isinstance(value, str) and value:
        # "all-linear", or a pattern: which modules it has met is said by the tensors that were saved.
        return None
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return frozenset(one.rpartition(".")[2] for one in value)
    raise ModelError(f"{file}: target_modules must be a list of names, a pattern or all-linear")


def _layers(file: Path, value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) > _MAX_PATTERNS or not all(type(one) is int and one >= 0 for one in numbers):
        raise ModelError(f"{file}: layers_to_transform must be numbers of layers")
    return frozenset(numbers)


def _number(file: Path, what: str, value: Any, *, whole: bool = False) -> float:
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    most = MAX_RANK if whole else 1e6
    if isinstance(value, bool) or not right or not 0 < value <= most:
        kind = "a whole number" if whole else "a number"
        raise ModelError(f"{file}: {what} must be {kind} above 0, {most:g} at most, not {quoted(str(value))}")
    return float(value)


def _pattern(file: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERNS:
        raise ModelError(f"{file}: {name} must be an object of {_MAX_PATTERNS} patterns at most")
    for key in value:
        repetitions = sum(key.count(sign) for sign in "*+{")
        # What repeats a group, or repeats again and again, may take for ever to say that it does not match.
        if (
            len(key) > _MAX_PATTERN_CHARACTERS
            or _REPEATS_A_GROUP.search(key)
            or repetitions > _MAX_REPETITIONS
        ):
            raise ModelError(f"{file}: {name}: {quoted(key)} is too involved; name the modules instead")
        try:
            re.compile(key)
        except re.error as error:
            raise ModelError(f"{file}: {name}: {quoted(key)} is no pattern ({error})") from error
    return value


def _by_pattern(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    """As PEFT looks them up: the first that is the module's name, or its end."""
    found = (value for key, value in patterns.items() if re.match(rf"(?:.*\.)?(?:{key})$", module))
    return next(found, usual)
