"""One stage of a model of the library: its own code, entered at the first layer and left behind the last.

The library's forward pass is run as it is, so that what it prepares for its layers (rotations, kinds of
layers, scales) is prepared for each stage alike. Layers of other stages hand on what they get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from stage_worker.loading.stage_weights import StageSlice
from stage_worker.transformers_code.attention_calls import NAME, AttentionCall, LayerAttention, bind
from stage_worker.transformers_code.carried import LOOK_UP, PROJECT, maker_of, shared_of
from stage_worker.transformers_code.experts import EXPERTS
from stage_worker.transformers_code.skeleton import Skeleton, first_position, use_attention

Forward = Callable[..., Any]


class _Left(Exception):  # noqa: N818
    """The stage's last layer is done. shared: keys and values for later layers, if there are any."""

    def __init__(self, hidden: torch.Tensor, shared: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.shared = shared


class StageModel:
    """A skeleton that is now one stage's; its tensors are put in by `weights.load`.

    wanted: names of its own tensors, by the model's names.
    """

    def __init__(self, skeleton: Skeleton, part: StageSlice) -> None:
        self.model = skeleton.model
        self.part = part
        self._skeleton = skeleton
        self._prefix = f"{skeleton.layers}."
        self._carried = skeleton.carried
        self._hidden: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._inputs: torch.Tensor | None = None
        self._ending = False
        self._states: torch.Tensor | None = None
        self._first_position = first_position(skeleton.model)
        use_attention(self.model, NAME, EXPERTS)
        for index, layer in enumerate(skeleton.layer_list):
            layer.__dict__["forward"] = self._seat(index, layer.forward)
        if skeleton.carried.inputs:
            self._seat_inputs()
        if not part.first:
            for name, shape in skeleton.before.items():
                if name not in skeleton.after:
                    module = self.model.get_submodule(name)
                    module.__dict__["forward"] = self._stand_in(shape)
        # What lists the layers ends with the model's last norm.
        self.model.get_submodule(skeleton.layers.rpartition(".")[0]).register_forward_hook(self._note_states)

    @property
    def width_in(self) -> int:
        """Values of a token that the stage is handed."""
        return self._carried.width(self.part.begin)

    def own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors that this stage computes with, as far as they are stored in checkpoints."""
        stored = self.model.state_dict(keep_vars=True)
        for name, tensor in stored.items():
            if self.owns(name):
                yield name, tensor

    def own_tables(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of computed tables that this stage may need."""
        for name, buffer in self.model.named_buffers():
            if self.owns(name):
                yield name, buffer

    def owns(self, name: str) -> bool:
        """Whether this stage computes with a tensor of the model."""
        if name.startswith(self._prefix):
            layer = int(name.removeprefix(self._prefix).split(".")[0])
            return self.part.begin <= layer < self.part.end
        module = name.rpartition(".")[0]
        before, after = module in self._skeleton.before, module in self._skeleton.after
        if before and self.part.first:
            return True
        if after and self.part.last:
            return True
        # What the module around the layers has for itself.
        return not (before or after) and self._prefix.startswith(f"{module}." if module else "")

    def to_device(self, device: torch.device) -> None:
        """Move computed tables."""
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(device)

    @property
    def calls(self) -> dict[int, AttentionCall]:
        """What its layers ask of attention."""
        part = self.part
        return {
            layer: call for layer, call in self._skeleton.calls.values() if part.begin <= layer < part.end
        }

    def bind_attention(self, attention: LayerAttention) -> None:
        """Let the stage's layers attend over its KV pool."""
        for path, (layer, _) in self._skeleton.calls.items():
            if self.part.begin <= layer < self.part.end:
                bind(self.model.get_submodule(path), attention, layer)

    def forward(
        self, positions: torch.Tensor, ids: torch.Tensor | None, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the stage's layers: token ids [tokens], or what the stage before handed on [tokens, width]."""
        self._enter(hidden, ending=False)
        if self._first_position:
            positions = positions + self._first_position
        given = {"input_ids": ids[None]} if ids is not None else {"inputs_embeds": self._embeds()}
        try:
            self.model(**given, position_ids=positions[None], use_cache=False)
        except _Left as left:
            return self._carried.packed(self.part.end, left.hidden, self._inputs, left.shared)
        finally:
            self._hidden = self._rows = self._inputs = None
        raise AssertionError("the last layer was not reached")

    def end(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows that have gone through all layers [rows, width]: the model's states, and the logits."""
        self._enter(hidden, ending=True)
        rows = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        try:
            result = self.model(inputs_embeds=self._embeds(), position_ids=rows, use_cache=False)
        finally:
            self._hidden = self._rows = self._inputs = None
        assert self._states is not None
        states, self._states = self._states, None
        return states[0], result.logits[0]

    def _enter(self, rows: torch.Tensor | None, ending: bool) -> None:
        """rows: what the first layer, or the end, is given instead of what comes before; None: nothing is."""
        carried = self._carried
        self._ending = ending
        if rows is None:
            return
        self._rows, self._hidden = rows, carried.states(rows)
        if carried.inputs:
            self._inputs = carried.no_inputs(rows) if ending else carried.inputs_of(self.part.begin, rows)

    def _embeds(self) -> torch.Tensor:
        """Embeddings that are replaced anyway, of the right shape."""
        assert self._hidden is not None
        return self._hidden if self._hidden.dim() == 3 else self._hidden[0]

    def _seat_inputs(self) -> None:
        """Let the first stage keep the inputs of all layers, and later ones use those they are handed."""
        maker: Any = maker_of(self.model)
        look_up, project = getattr(maker, LOOK_UP), getattr(maker, PROJECT)

        def looked_up(*args: Any, **kwargs: Any) -> Any:
            return look_up(*args, **kwargs) if self._hidden is None else None

        def projected(*args: Any, **kwargs: Any) -> torch.Tensor:
            if self._hidden is None:
                self._inputs = project(*args, **kwargs)
            assert self._inputs is not None
            return self._inputs

        maker.__dict__.update({LOOK_UP: looked_up, PROJECT: projected})

    def _note_states(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._ending:
            self._states = output[0]

    def _seat(self, index: int, forward: Forward) -> Forward:
        part, tuples = self.part, self._skeleton.tuples

        def packed(hidden: torch.Tensor) -> Any:
            return (hidden, *[None] * (tuples - 1)) if tuples else hidden

        def passing(*args: Any, **kwargs: Any) -> Any:
            if index == 0 and self._hidden is not None:
                return packed(self._hidden)
            return packed(args[0] if args else kwargs["hidden_states"])

        def computing(*args: Any, **kwargs: Any) -> Any:
            if self._ending:
                return passing(*args, **kwargs)
            shared = shared_of(kwargs)
            if index == part.begin and self._rows is not None:
                self._carried.share(index, self._rows, shared)
            output = forward(*args, **kwargs)
            if index == part.end - 1:
                raise _Left(output[0] if tuples else output, shared)
            return output

        return computing if part.begin <= index < part.end else passing

    def _stand_in(self, shape: tuple[int, ...]) -> Forward:
        def nothing(*args: Any, **kwargs: Any) -> torch.Tensor:
            assert self._rows is not None
            return self._rows.new_zeros(1, len(self._rows), *shape)

        return nothing
