"""Adapters (LoRA) beside linear modules of the library's layers, by the names that PEFT gives them, too."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from stage_worker.loading.adapters import AdapterFolder, low_rank, numbered
from stage_worker.models.adapters import LowRank, PerAdapter, StepAdapters
from stage_worker.transformers_code.stage_model import StageModel


def attach(
    stage: StageModel,
    folders: Iterable[AdapterFolder],
    dtype: torch.dtype,
    device: torch.device,
    step: StepAdapters,
) -> int:
    """Let the stage's modules add what a step's adapters make of their inputs; bytes of the adapters.

    step: tells which tokens are whose.
    """
    nbytes = 0
    distinct = numbered(folders)
    names = {name for folder in distinct for name in folder.modules if stage.owns(f"{name}.weight")}
    for name in sorted(names):
        module = stage.model.get_submodule(name)
        adapters = tuple(low_rank(folder, [(0, name)], dtype, device) for folder in distinct)
        module.register_forward_hook(partial(_add, adapters, step))
        nbytes += sum(one.nbytes for one in adapters if one is not None)
    return nbytes


def _add(
    adapters: PerAdapter, step: StepAdapters, module: nn.Module, inputs: Any, output: torch.Tensor
) -> torch.Tensor:
    if not step.segments:
        return output
    x, y = inputs[0].flatten(0, -2), output.flatten(0, -2)
    for number, begin, end in step.segments:
        low: LowRank | None = adapters[number - 1]
        if low is not None:
            low.add(x[begin:end], y[begin:end])
    return y.view(output.shape)
