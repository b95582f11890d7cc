"""Attention on a GPU: the best back end that is there and passes its trial."""

from __future__ import annotations

import importlib
import importlib.util
import os

import structlog
import torch

from stage_worker.attention.backend import AttentionBackend, AttentionContext, MakeAttention
from stage_worker.attention.choice import (
    FLASH_ATTN,
    FLASHINFER,
    FLASHINFER_FA2,
    FLEX,
    MODULES,
    TORCH,
    Facts,
    rank,
)
from stage_worker.attention.flash_attn_paged import FlashAttnAttention
from stage_worker.attention.flashinfer_paged import FlashInferAttention
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.attention.trial import TriedBackend, disagreement
from stage_worker.device_copies import check_device

SWITCH = "TIDEPIPE_CUDA_ATTENTION"
"""Environment variable: the name of the back end to use, if it can be."""

_log = structlog.get_logger()


def _flex(context: AttentionContext) -> AttentionBackend:
    # Imported late: it brings PyTorch's compiler along.
    from stage_worker.attention.flex_paged import FlexPagedAttention

    return FlexPagedAttention(context)


MAKERS: dict[str, MakeAttention] = {
    FLASHINFER: lambda context: FlashInferAttention(context, importlib.import_module("flashinfer")),
    FLASHINFER_FA2: lambda context: FlashInferAttention(
        context, importlib.import_module("flashinfer"), prefill_backend="fa2"
    ),
    FLASH_ATTN: lambda context: FlashAttnAttention(context, importlib.import_module("flash_attn")),
    FLEX: _flex,
    TORCH: TorchPagedAttention,
}


class CudaAttention:
    """Makes the attention of each epoch; says so when the choice is another than before."""

    def __init__(self, makers: dict[str, MakeAttention] | None = None) -> None:
        self._makers = makers or MAKERS
        self._said: tuple[str, dict[str, str]] | None = None

    def __call__(self, context: AttentionContext) -> AttentionBackend:
        """The first back end of the ranking that agrees with plain PyTorch, which is the last."""
        return self.first_that_works(context, facts_of(context))

    @torch.inference_mode()
    def first_that_works(self, context: AttentionContext, facts: Facts) -> AttentionBackend:
        """As above, for given facts."""
        ranking = rank(facts, os.environ.get(SWITCH, ""))
        refused = dict(ranking.refused)
        reference = TorchPagedAttention(context)
        for name in ranking.usable:
            if name == TORCH:
                break
            try:
                backend = self._makers[name](context)
                problem = disagreement(backend, reference, context)
            except Exception as error:  # whatever a library has to say about a geometry or a device
                problem = f"{type(error).__name__}: {error}"
                # An illegal access breaks the device for this process for good: that must not pass for a
                # refusal, which leaves a stage that fails at every step.
                check_device(context.pool.keys(0).device)
            if problem is None:
                if isinstance(backend, TriedBackend):
                    backend.passed()
                self._say(name, refused)
                return backend
            refused[name] = problem
            _log.warning("attention back end left out", attention=name, reason=problem)
        self._say(TORCH, refused)
        return reference

    def _say(self, name: str, refused: dict[str, str]) -> None:
        if self._said != (name, refused):
            self._said = name, refused
            _log.info("attention on the GPU", attention=name, left_out=refused)


def facts_of(context: AttentionContext) -> Facts:
    """What the choice depends on, looked up."""
    geometry = context.pool.geometry
    return Facts(
        capability=torch.cuda.get_device_capability(context.pool.keys(0).device),
        importable=frozenset(name for name in MODULES if importlib.util.find_spec(name) is not None),
        dtype=geometry.dtype,
        head_dim=geometry.head_dim,
        block_size=geometry.block_size,
    )
