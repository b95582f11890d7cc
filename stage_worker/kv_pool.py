"""The paged KV cache of a stage: fixed blocks, shared by all sequences through their block tables."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stage_worker.pages import zeros
from tidepipe_common.errors import ConfigError

_MOST_BLOCKS = 65_536
"""Cap for pools sized by memory: more never fills on a small model, and every block costs ledger space."""

_READY_BYTES = 512 << 20
"""Of a pool on CPU that are made resident at once, not when a prompt comes: on a virtual machine the first
write to fresh memory can take ten times as long as the work on it (2 ms per MiB were seen)."""

_LEAST_FULL_CONTEXTS = 16
"""The cap leaves room for at least so many sequences of full length."""


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """Sizes of one stage's KV cache; block_size in tokens."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers, keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.block_size * self.dtype.itemsize


def size_pool(geometry: KvGeometry, wanted: int, budget: int, weight_bytes: int, context_length: int) -> int:
    """Number of blocks: `wanted`, or for 0 as many as the budget holds (capped to what can be of use).

    budget: bytes for weights and blocks together. Raises ConfigError if it is too small.
    """
    room = budget - weight_bytes
    needed = max(wanted, 1)
    if room < needed * geometry.block_bytes:
        least = weight_bytes + needed * geometry.block_bytes
        raise ConfigError(
            f"a memory budget of {budget} bytes is too small: {weight_bytes} bytes of weights and {needed} "
            f"KV block(s) of {geometry.block_bytes} bytes need {least} bytes; "
            "raise it, ask for fewer KV blocks, or split the model over more stages"
        )
    if wanted:
        return wanted
    full_contexts = _LEAST_FULL_CONTEXTS * -(-context_length // geometry.block_size)
    return min(room // geometry.block_bytes, max(_MOST_BLOCKS, full_contexts))


class LayerProgress:
    """How many of the stage's layers have stored the keys and values of the step that is being computed.

    The compute thread writes it, any other may read it. layers: for kernels, which know its address.
    """

    def __init__(self) -> None:
        self.layers = ctypes.c_int64()
        self._step_id = 0

    def begin(self, step_id: int) -> None:
        """None of this step's yet."""
        # In this order: whoever reads sees no count of the step before.
        self._step_id = 0
        self.layers.value = 0
        self._step_id = step_id

    def of(self, step_id: int) -> int:
        """Layers of that step, at least; 0 unless it is being computed."""
        return self.layers.value if self._step_id == step_id else 0


class KvPool:
    """Keys and values of every layer, zero at first.

    The order of values within a block and head is the attention backend's own affair.

    spare: blocks behind those that sequences get, for what must be written somewhere.
    On CPU the blocks that the controller takes first are resident from the start, the others only once used.
    Raises ConfigError if the device has not as much memory.
    """

    def __init__(self, geometry: KvGeometry, blocks: int, device: torch.device, spare: int = 0) -> None:
        self.geometry = geometry
        self.blocks = blocks
        self.progress = LayerProgress()
        total = blocks + spare
        self.nbytes = total * geometry.block_bytes
        shape = (geometry.layers, total, 2, geometry.kv_heads, geometry.block_size, geometry.head_dim)
        try:
            if device.type == "cpu":
                # Blocks are read in any order: larger pages mean fewer address translations.
                self._data = zeros(shape, geometry.dtype)
                self._data[:, : _READY_BYTES // geometry.block_bytes].zero_()
            else:
                self._data = torch.zeros(shape, dtype=geometry.dtype, device=device)
        except (OSError, torch.OutOfMemoryError) as error:
            raise ConfigError(
                f"no memory for a KV pool of {self.nbytes} bytes on {device} ({error})"
            ) from error

    def keys(self, layer: int) -> torch.Tensor:
        """Keys of the stage's layer number `layer`: [blocks, kv_heads, block_size, head_dim]."""
        return self._data[layer, :, 0]

    def values(self, layer: int) -> torch.Tensor:
        """Values of the stage's layer number `layer`: [blocks, kv_heads, block_size, head_dim]."""
        return self._data[layer, :, 1]

    def block(self, block: int) -> torch.Tensor:
        """Keys and values of all layers in one block: [layers, 2, kv_heads, block_size, head_dim]."""
        return self._data[:, block]

    def read(self, layer: int, blocks: Sequence[int]) -> bytes:
        """What is in blocks of the stage's layer number `layer`, one behind the other."""
        chosen = self._data[layer][torch.tensor(blocks, device=self._data.device)]
        data: bytes = chosen.cpu().view(-1).view(torch.uint8).numpy().tobytes()
        return data

    def write(self, layer: int, blocks: Sequence[int], data: bytes) -> None:
        """The reverse of `read`. ValueError: it is not of their size."""
        size = self.geometry.block_bytes // self.geometry.layers
        if len(data) != len(blocks) * size:
            raise ValueError(f"{len(data)} bytes for {len(blocks)} blocks of {size}")
        if not blocks:
            return
        flat = torch.frombuffer(bytearray(data), dtype=self._data.dtype)
        content = flat.view(len(blocks), *self._data.shape[2:]).to(self._data.device)
        self._data[layer][torch.tensor(blocks, device=self._data.device)] = content

    def block_bytes_by_layer(self) -> list[torch.Tensor]:
        """For each layer the bytes of its blocks: [blocks, bytes]."""
        return [layer.view(len(layer), -1).view(torch.uint8) for layer in self._data]

    def occupy(self) -> None:
        """Write to all of it, so that it is resident."""
        self._data.fill_(0.01)

    def with_heads(self, kv_heads: int) -> KvPool:
        """The first so many heads of all blocks, as a pool of its own over the same memory."""
        if kv_heads == self.geometry.kv_heads:
            return self
        part = copy.copy(self)
        part.geometry = replace(self.geometry, kv_heads=kv_heads)
        part._data = self._data[:, :, :, :kv_heads]
        return part


class PoolAccess:
    """The blocks of a pool for other instances' stages; implements `KvAccess`."""

    def __init__(self, pool: KvPool, first_layer: int, order: str) -> None:
        """first_layer: of the stage. order: of values within a block and head, by a name for it."""
        geometry = pool.geometry
        dtype = str(geometry.dtype).removeprefix("torch.")
        sizes = f"{geometry.kv_heads}x{geometry.block_size}x{geometry.head_dim}"
        self.layout = f"{order} {dtype} {sizes}"
        self.layer_block_bytes = geometry.block_bytes // geometry.layers
        self._pool = pool
        self._first_layer = first_layer

    def read(self, layer: int, blocks: tuple[int, ...]) -> bytes:
        """See KvAccess."""
        return self._pool.read(layer - self._first_layer, blocks)

    def write(self, layer: int, blocks: tuple[int, ...], data: bytes) -> None:
        """See KvAccess."""
        self._pool.write(layer - self._first_layer, blocks, data)

    def layers_stored(self, step_id: int) -> int:
        """See KvAccess."""
        return self._pool.progress.of(step_id)

    @property
    def way_bytes_per_s(self) -> float:
        """See KvAccess."""
        return 0.0

    def way_s(self, nbytes: int) -> float:
        """See KvAccess."""
        return 0.0

    def way_out_s(self, nbytes: int) -> float:
        """See KvAccess."""
        return 0.0
