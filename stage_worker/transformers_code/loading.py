"""A stage of a model of the library: built without weights, cut, and filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from stage_worker.attention.backend import MakeAttention
from stage_worker.kv_pool import KvPool
from stage_worker.loading.adapters import Adaptable, AdapterFolder, numbered, numbers
from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.stage_weights import StageSlice
from stage_worker.models.adapters import NO_ADAPTERS, StageAdapters, StepAdapters
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code.adapters import attach
from stage_worker.transformers_code.attention_calls import UnsuitableError
from stage_worker.transformers_code.decoder import TransformersDecoder
from stage_worker.transformers_code.products import Products, by_pytorch, held_bytes, replace_products
from stage_worker.transformers_code.skeleton import Skeleton, build, look_at
from stage_worker.transformers_code.stage_attention import StageAttention
from stage_worker.transformers_code.stage_model import StageModel
from stage_worker.transformers_code.weights import Names, WeightMap
from tidepipe_common.errors import ModelError
from tidepipe_common.text.text import quoted

_T = TypeVar("_T")


def config_of(values: Mapping[str, Any]) -> PretrainedConfig:
    """The library's configuration; UnsuitableError for a family that it does not know, or wrong values."""
    model_type = str(values.get("model_type") or "")
    if model_type not in CONFIG_MAPPING:
        raise UnsuitableError(_unknown(values, model_type))
    try:
        return text_alone(CONFIG_MAPPING[model_type].from_dict(dict(values)))
    except Exception as error:  # whatever its checks have to say
        raise UnsuitableError(f"the library refuses its configuration ({_brief(error)})") from error


def text_alone(config: PretrainedConfig) -> PretrainedConfig:
    """The text model's of one that sees and hears, where the whole would look at token ids at each stage."""
    if getattr(config, "is_encoder_decoder", False):
        return config
    text: PretrainedConfig = config.get_text_config()
    return text if getattr(text, "hidden_size_per_layer_input", 0) else config


def _unknown(values: Mapping[str, Any], model_type: str) -> str:
    import transformers

    if values.get("auto_map"):
        return "its code is in its repository, and such code is never run"
    return (
        f"transformers {transformers.__version__} does not know {quoted(model_type) if model_type else 'it'}"
    )


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class LibraryModel:
    """A checkpoint whose model the library's code computes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.library_config is not None
        self._checkpoint = checkpoint
        self._config = self._known(lambda: config_of(checkpoint.library_config or {}))

    def check(self) -> frozenset[str]:
        """The names of stored tensors that are not used; ModelError if one is missing or misshapen."""
        skeleton = self._skeleton(torch.float32)
        names = WeightMap(skeleton, self._checkpoint)
        whole = StageModel(skeleton, StageSlice(0, self._checkpoint.spec.layers, True, True))
        names.check([name for name, _ in whole.own_tensors()])
        return frozenset(names.unused)

    def adaptable(self) -> Adaptable:
        """The layers' products that adapters may change."""
        skeleton = self._skeleton(torch.float32)
        names = Names(skeleton.model)

        def renamed(module: str) -> str:
            found = names.of(f"{module}.weight")
            return module if found is None else found[0].removesuffix(".weight")

        return Adaptable(skeleton.products, renamed)

    def load(
        self, part: StageSlice, dtype: torch.dtype, device: torch.device, products: Products
    ) -> LoadedStage:
        """Read what the stage needs, nothing else. products: make its matrix products."""
        skeleton = self._skeleton(dtype)
        names = WeightMap(skeleton, self._checkpoint)
        stage = StageModel(skeleton, part)
        names.load(stage, dtype, device, products)
        stage.to_device(device)
        left = [name for name, tensor in (*stage.own_tensors(), *stage.own_tables()) if tensor.is_meta]
        if left:
            raise ModelError(f"{self._checkpoint.path}: no values for {', '.join(left[:3])}")
        replace_products(stage.model, products, stage.model.get_output_embeddings())
        return LoadedStage(stage, held_bytes(stage.model))

    def _skeleton(self, dtype: torch.dtype) -> Skeleton:
        return self._known(lambda: skeleton_of(self._config, dtype))

    def _known(self, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except UnsuitableError as error:
            raise ModelError(f"{self._checkpoint.path}: {error}") from error


@dataclass(slots=True)
class LoadedStage:
    """A stage with its weights. nbytes: of them, and of its adapters."""

    stage: StageModel
    nbytes: int
    adapters: StageAdapters = NO_ADAPTERS
    step: StepAdapters = field(default_factory=StepAdapters)

    @property
    def by_pytorch(self) -> bool:
        """True if PyTorch unpacks weights of some product in every step."""
        return by_pytorch(self.stage.model)

    def attach(self, folders: Sequence[AdapterFolder], dtype: torch.dtype, device: torch.device) -> None:
        """Let sequences have these adapters."""
        self.nbytes += attach(self.stage, folders, dtype, device, self.step)
        self.adapters = StageAdapters(numbers(numbered(folders)))

    @property
    def slow_layers(self) -> int:
        """See LibraryStage."""
        return sum(call.ruled for call in self.stage.calls.values())

    def decoder(
        self, spec: ModelSpec, pool: KvPool, device: torch.device, make: MakeAttention
    ) -> TransformersDecoder:
        """What computes the stage's steps."""
        attention = StageAttention(spec, self.stage.calls, self.stage.part.begin, pool, make)
        return TransformersDecoder(self.stage, attention, device, self.step)


def skeleton_of(config: PretrainedConfig, dtype: torch.dtype) -> Skeleton:
    """The model without weights, and how its layers attend."""
    return look_at(build(config, dtype))
