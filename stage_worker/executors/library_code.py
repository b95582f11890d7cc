"""The transformers library's code as what computes a stage: imported only for models that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from stage_worker.attention.backend import MakeAttention
from stage_worker.executors.torch_compute import Compute
from stage_worker.executors.torch_executor import StageDecoder
from stage_worker.kv_pool import KvPool
from stage_worker.loading.adapters import Adaptable, AdapterFolder
from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.stage_weights import StageSlice, check_weights
from stage_worker.models.adapters import StageAdapters
from stage_worker.models.spec import ModelSpec

if TYPE_CHECKING:
    from stage_worker.transformers_code.products import Products


class LibraryStage(Protocol):
    """A stage's layers, loaded."""

    @property
    def nbytes(self) -> int:
        """Memory of the weights, bytes."""
        ...

    @property
    def by_pytorch(self) -> bool:
        """True if PyTorch unpacks weights of some product in every step."""
        ...

    @property
    def adapters(self) -> StageAdapters:
        """Those that sequences may have, by number; `nbytes` counts them already."""
        ...

    def attach(self, folders: Sequence[AdapterFolder], dtype: torch.dtype, device: torch.device) -> None:
        """Let sequences have these adapters; once."""
        ...

    @property
    def slow_layers(self) -> int:
        """Layers that must attend in plain PyTorch, whatever kernels there are."""
        ...

    def decoder(
        self, spec: ModelSpec, pool: KvPool, device: torch.device, make: MakeAttention
    ) -> StageDecoder:
        """What computes the stage's steps over a KV pool."""
        ...


class LibraryCode(Protocol):
    """A model that the library's code computes."""

    def check(self) -> frozenset[str]:
        """The names of stored tensors that the model does not use; ModelError if others are missing."""
        ...

    def adaptable(self) -> Adaptable:
        """The layers' products that adapters may change."""
        ...

    def load(
        self, part: StageSlice, dtype: torch.dtype, device: torch.device, products: Products
    ) -> LibraryStage:
        """Read what the stage needs, nothing else. products: make its matrix products."""
        ...


def products_of(compute: Compute) -> Products:
    """What computes matrix products as fast as those of TidePipe's own layers."""
    from stage_worker.transformers_code.products import Products

    return Products(
        compute.linear, compute.head, plain=compute.kernels is not None, rounded=compute.int8_cache
    )


def check_tensors(checkpoint: Checkpoint, library: LibraryCode | None) -> frozenset[str]:
    """The names of stored tensors that a model does not use; ModelError if others are missing or misshapen.

    Reads no values.
    """
    if library is not None:
        return library.check()
    return frozenset(checkpoint.tensors) - check_weights(checkpoint)


def library_code(checkpoint: Checkpoint) -> LibraryCode | None:
    """The library's code for a checkpoint that needs it, else None."""
    if checkpoint.library_config is None:
        return None
    from stage_worker.transformers_code.loading import LibraryModel

    return LibraryModel(checkpoint)
