"""A model of the library without its weights, and what is found by looking at it: how its layers attend."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from stage_worker.transformers_code.attention_calls import NAME, AttentionCall, UnsuitableError, recorded
from stage_worker.transformers_code.carried import Carried, CarriedNotes
from stage_worker.transformers_code.older import EMPTY_MASK, MASKED, use_interface

_TOKENS = 3
"""Of the pass that looks at a skeleton."""
_RECURRENT = ("Mixer", "Mamba", "Delta", "Recurrent", "Rwkv", "LSTM", "Conv", "Lightning", "LinearAtt")
_LARGE = 1 << 24
"""Values of a tensor that is no computed table."""
_UNCOMPUTED = "tidepipe_uncomputed"


def _nothing(*_: Any, **__: Any) -> None:
    """Instead of what is of no use here."""


def _uncomputed(module: nn.Module, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Experts of a skeleton: which ones a token would go to is not known there."""
    return torch.zeros_like(hidden_states)


ALL_EXPERTS_FUNCTIONS.register(_UNCOMPUTED, _uncomputed)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """model: on the meta device but for its computed tables. layers: the path of the list of its layers.

    calls: by the path of the module that calls attention, (its layer, what it asks for).
    tuples: how many values a layer returns, 0 for one that returns no tuple.
    before, after: modules with parameters of their own, beside the layers, that are called before the first
    layer and behind the last one, by path; with `before` the shape of what they return behind the tokens.
    products: [out, in] of the layers' linear modules through which each token goes once, by path.
    carried: what goes from layer to layer.
    """

    model: PreTrainedModel
    layers: str
    calls: dict[str, tuple[int, AttentionCall]]
    tuples: int
    before: dict[str, tuple[int, ...]]
    after: frozenset[str]
    products: dict[str, tuple[int, int]]
    carried: Carried

    @property
    def layer_list(self) -> nn.ModuleList:
        """Its layers."""
        found = self.model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found


def build(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a configuration, weights on the meta device, tables that are computed on the CPU.

    UnsuitableError if the library has no language model for it, or cannot build it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsuitableError("an encoder with a decoder")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsuitableError("no language model")
    try:
        with _weightless():
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation="eager"
            )
    except UnsuitableError:
        raise
    except Exception as error:
        raise UnsuitableError(f"the library cannot build it ({_brief(error)})") from error
    model.eval()
    return model


def look_at(model: PreTrainedModel) -> Skeleton:
    """Run a few tokens through a model on the meta device, and see what its layers call.

    UnsuitableError for one whose layers keep more than keys and values, or call no attention.
    """
    config = model.config.get_text_config()
    path, layers = _layers(model, config.num_hidden_layers)
    use_attention(model, NAME, _UNCOMPUTED)
    use_interface(model)
    experts = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    for module in experts:
        # Of those, too, that do not go through the library's interface for them.
        module.__dict__["forward"] = partial(_uncomputed, module)
    outputs: list[Any] = []
    beside, products = _Beside(model, path), _Products(layers, path)
    notes = CarriedNotes(model, layers)
    hook = layers[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    buffers = dict(model.named_buffers())
    try:
        meta = model.to("meta")
        with recorded() as recorder, torch.inference_mode():
            ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
            positions = torch.arange(_TOKENS, device="meta").unsqueeze(0)
            meta(input_ids=ids, position_ids=positions, use_cache=False)
    except UnsuitableError:
        raise
    except Exception as error:
        kinds = sorted({type(module).__name__ for module in layers.modules()})
        if indexers := [kind for kind in kinds if kind.endswith("Indexer")]:
            picked = f"attention to tokens that an indexer picks ({', '.join(indexers)})"
            raise UnsuitableError(picked) from error
        raise UnsuitableError(f"code that needs a cache or a mask of its own ({_brief(error)})") from error
    finally:
        hook.remove()
        beside.remove()
        products.remove()
        notes.remove()
        for module in experts:
            del module.__dict__["forward"]
        _restore(model, buffers)
    names = {module: name for name, module in model.named_modules()}
    calls: dict[str, tuple[int, AttentionCall]] = {}
    prefix = f"{path}."
    for module, call in recorder.calls.items():
        name = names.get(module, "")
        if not name.startswith(prefix):
            raise UnsuitableError(f"attention outside of the layers ({type(module).__name__})")
        calls[name] = (
            int(name.removeprefix(prefix).split(".")[0]),
            _completed(call, module, config, name, prefix),
        )
    missing = sorted(set(range(len(layers))) - {layer for layer, _ in calls.values()})
    if missing:
        raise UnsuitableError(_without_attention(layers, missing))
    if len(calls) != len(layers):
        raise UnsuitableError("layers that attend more than once")
    if not outputs:
        raise UnsuitableError("layers that are not run one after the other")
    tuples = len(outputs[0]) if isinstance(outputs[0], tuple) else 0
    carried = notes.found(int(config.hidden_size))
    after = frozenset(beside.after)
    return Skeleton(model, path, calls, tuples, beside.before, after, products.found, carried)


class _Beside:
    """Notes which modules beside the layers are called, and when."""

    def __init__(self, model: nn.Module, layers: str) -> None:
        self.before: dict[str, tuple[int, ...]] = {}
        self.after: set[str] = set()
        self._entered = False
        self._hooks = [model.get_submodule(f"{layers}.0").register_forward_pre_hook(self._enter)]
        for name, module in model.named_modules():
            if f"{name}.".startswith(f"{layers}."):
                continue
            if module._parameters or module._buffers:
                self._hooks.append(module.register_forward_hook(partial(self._note, name)))

    def remove(self) -> None:
        """Note nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, *_: Any) -> None:
        self._entered = True

    def _note(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._entered:
            self.after.add(name)
        elif isinstance(output, torch.Tensor) and next(module.parameters(recurse=False), None) is not None:
            self.before[name] = tuple(output.shape[2:])


class _Products:
    """Notes the layers' products that are called once, with all tokens in their order."""

    def __init__(self, layers: nn.ModuleList, path: str) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self._called: set[str] = set()
        self._hooks = [
            module.register_forward_hook(partial(self._note, f"{path}.{name}"))
            for name, module in layers.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        ]

    def remove(self) -> None:
        """Note nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        again = name in self._called
        self._called.add(name)
        whole = isinstance(output, torch.Tensor)  # a router may return its choices beside
        if not again and whole and inputs and inputs[0].shape[:-1].numel() == _TOKENS:
            self.found[name] = output.shape[-1], inputs[0].shape[-1]
        else:
            self.found.pop(name, None)


def first_position(model: nn.Module) -> int:
    """The number of a sequence's first position: families after RoBERTa count from behind the padding's."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and hasattr(module, "create_position_ids_from_input_ids"):
            return padding + 1
    return 0


def use_attention(model: PreTrainedModel, attention: str, experts: str) -> None:
    """Which registered functions compute attention and experts, in all of a model's configurations."""
    if attention == NAME and any(type(module).__name__ in MASKED for module in model.modules()):
        attention = EMPTY_MASK
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # It looks for padding, which there never is, in values that are not there yet.
            module.__dict__["warn_if_padding_and_no_attention_mask"] = _nothing
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation_internal = attention
            config._experts_implementation_internal = experts


def _completed(call: AttentionCall, module: nn.Module, config: Any, name: str, prefix: str) -> AttentionCall:
    """What a layer leaves to the mask: windows and chunks that are named by its kind only."""
    layer = int(name.removeprefix(prefix).split(".")[0])
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds else None
    if kind == "chunked_attention":
        return dataclasses.replace(call, chunk=config.attention_chunk_size)
    if kind == "sliding_attention" and call.window is None:
        return dataclasses.replace(call, window=getattr(config, "sliding_window", None))
    if kind == "full_attention" and call.window is not None:
        return dataclasses.replace(call, window=None)
    return call


def _without_attention(layers: nn.ModuleList, missing: list[int]) -> str:
    kinds = sorted(
        {
            type(child).__name__
            for index in missing
            for child in layers[index].children()
            if not type(child).__name__.endswith(("Norm", "MLP", "MoE", "Dropout", "Linear", "MoeBlock"))
        }
    )
    what = ", ".join(kinds) or type(layers[missing[0]]).__name__
    if any(word in kind for kind in kinds for word in _RECURRENT):
        return f"recurrent layers, which keep a state that is no KV cache ({what})"
    return f"layers that do not go through the library's attention interface ({what})"


def _layers(model: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList]:
    """The list of the decoder's layers: of all lists of that length, the one nearest to the root."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and "." in name
    ]
    if not found:
        raise UnsuitableError("no list of layers as long as the configuration says")
    return min(found, key=lambda one: one[0].count("."))


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _restore(model: PreTrainedModel, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in buffers.items():
        path, _, last = name.rpartition(".")
        model.get_submodule(path)._buffers[last] = buffer


class _LargeOnMeta(TorchFunctionMode):
    """Makes large tensors on the meta device at once: a layer's experts may be more than there is memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
            if all(isinstance(size, int) for size in sizes) and math.prod(sizes) >= _LARGE:
                kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def _weightless() -> Iterator[None]:
    """Parameters of modules that are built in here are on the meta device, and buffers are not."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            made = nn.Parameter(parameter.to("meta"), requires_grad=False)
            made.__dict__.update(parameter.__dict__)
            module._parameters[name] = made

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        with _LargeOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def pool_head_dim(calls: dict[str, tuple[int, AttentionCall]], multiple: int = 16) -> int:
    """Values of a head in the KV pool: room for keys and values of all layers."""
    widest = max(max(call.stored_key_dim, call.value_dim) for _, call in calls.values())
    return math.ceil(widest / multiple) * multiple
