"""What goes from stage to stage with the hidden states, of each token.

Most models hand on hidden states alone. Some give each layer a value of its own that is made of the token ids
(per-layer embeddings), let later layers attend to the keys and values of an earlier one, or keep several
hidden states of a token. A stage hands on all that the ones behind it need, packed into one row for a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stage_worker.transformers_code.attention_calls import UnsuitableError

PROJECT, LOOK_UP = "project_per_layer_inputs", "get_per_layer_inputs"
"""Methods of a model that make the inputs of all its layers: [1, tokens, layers, values]."""
_SHARED = "shared_kv_states"
"""Argument of layers: keys and values, [1, heads, tokens, head size] each, by the kind of layer."""

Shared = tuple[tuple[str, int, int, int], ...]
"""Of each kind: its name, key heads, and values of a key's and of a value's head."""


@dataclass(frozen=True, slots=True)
class Carried:
    """streams: hidden states of a token. inputs: values that each layer is given of it, 0 for none.

    shared: keys and values that there are behind each layer for later ones; empty if none ever are.
    """

    hidden: int
    layers: int
    streams: int = 1
    inputs: int = 0
    shared: tuple[Shared, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether hidden states are all that there is."""
        return self.streams == 1 and not self.inputs and not self.shared

    def before(self, layer: int) -> Shared:
        """Keys and values that come to a layer from earlier ones."""
        return self.shared[layer - 1] if self.shared and layer else ()

    def width(self, layer: int) -> int:
        """Values of a token that a stage is handed whose first layer is this one."""
        if layer == self.layers:
            return self.streams * self.hidden
        shared = sum(heads * (key + value) for _, heads, key, value in self.before(layer))
        return self.streams * self.hidden + (self.layers - layer) * self.inputs + shared

    @property
    def most(self) -> int:
        """Values of a token that any stage hands on to another one, at most."""
        return max((self.width(layer) for layer in range(1, self.layers)), default=0)

    def packed(
        self, layer: int, hidden: torch.Tensor, inputs: torch.Tensor | None, shared: Any
    ) -> torch.Tensor:
        """What a stage hands on to the one whose first layer is this one: [tokens, width]."""
        states = self._rows(hidden)
        if layer == self.layers:
            return states
        parts = [states]
        if self.inputs:
            assert inputs is not None
            parts.append(inputs[0, :, layer:].flatten(1))
        for kind, *_ in self.before(layer):
            parts += [one[0].transpose(0, 1).flatten(1) for one in shared[kind]]
        return torch.cat(parts, dim=1) if len(parts) > 1 else states

    def states(self, rows: torch.Tensor) -> torch.Tensor:
        """The hidden states as the library's layers have them: [(streams,) 1, tokens, hidden]."""
        tokens, mine = len(rows), rows[:, : self.streams * self.hidden]
        if self.streams == 1:
            return mine.view(1, tokens, self.hidden) if mine.is_contiguous() else mine[None].contiguous()
        return mine.reshape(tokens, self.streams, self.hidden).transpose(0, 1)[:, None].contiguous()

    def inputs_of(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """What the layers from this one on are given, [1, tokens, layers, values]; zeros for those before."""
        begin, count = self.streams * self.hidden, (self.layers - layer) * self.inputs
        mine = rows[:, begin : begin + count].reshape(len(rows), -1, self.inputs)
        return nn.functional.pad(mine, (0, 0, layer, 0))[None]

    def no_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Inputs for layers that hand on what they get."""
        return rows.new_zeros(1).expand(1, len(rows), self.layers, self.inputs)

    def share(self, layer: int, rows: torch.Tensor, shared: Any) -> None:
        """Put in what earlier layers have for the later ones."""
        at = self.streams * self.hidden + (self.layers - layer) * self.inputs
        for kind, heads, key, value in self.before(layer):
            pair = []
            for size in (key, value):
                part = rows[:, at : at + heads * size].reshape(len(rows), heads, size)
                pair.append(part.transpose(0, 1)[None])
                at += heads * size
            shared[kind] = tuple(pair)

    def _rows(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.streams == 1:
            return hidden[0]
        return hidden[:, 0].transpose(0, 1).flatten(1)


def shared_of(kwargs: Mapping[str, Any]) -> Any:
    """What a layer is given to share keys and values in; None if nothing."""
    return kwargs.get(_SHARED)


class CarriedNotes:
    """Notes what a pass over a skeleton gives its layers."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        self._layers = len(layers)
        self._inputs = 0
        self._shape: tuple[int, ...] = ()
        self._shared: dict[int, Shared] = {}
        self._hooks = [
            layer.register_forward_hook(self._noting(index), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]
        self._maker = maker_of(model)
        if self._maker is not None:
            self._maker.__dict__[PROJECT] = self._projecting(getattr(self._maker, PROJECT))

    def remove(self) -> None:
        """Note nothing any more."""
        for hook in self._hooks:
            hook.remove()
        if self._maker is not None:
            del self._maker.__dict__[PROJECT]

    def found(self, hidden: int) -> Carried:
        """What goes from stage to stage; UnsuitableError if it is anything else."""
        *outer, one, _, width = self._shape if len(self._shape) >= 3 else (0, 0, 0)
        if len(outer) > 1 or one != 1 or width != hidden:
            raise UnsuitableError(f"layers that hand on {list(self._shape)}, not {hidden} values for a token")
        streams = outer[0] if outer else 1
        shared = tuple(self._shared.get(index, ()) for index in range(self._layers))
        return Carried(hidden, self._layers, streams, self._inputs, shared if any(shared) else ())

    def _noting(self, index: int) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if index == 0 and isinstance(hidden, torch.Tensor):
                self._shape = tuple(hidden.shape)
            shared = shared_of(kwargs)
            if shared:
                self._shared[index] = tuple(
                    (kind, key.shape[1], key.shape[3], value.shape[3])
                    for kind, (key, value) in sorted(shared.items())
                )

        return note

    def _projecting(self, project: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def noting(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = project(*args, **kwargs)
            self._inputs = made.shape[-1]
            return made

        return noting


def maker_of(model: nn.Module) -> nn.Module | None:
    """The module that makes the inputs of all layers; None if they have none."""
    return next((module for module in model.modules() if hasattr(module, PROJECT)), None)
