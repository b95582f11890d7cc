"""Decode steps by CUDA graphs: a step of many small kernels at the cost of one launch."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import torch

from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.static_batch import StaticBackend, StaticDecode
from stage_worker.device_copies import check_device
from stage_worker.executors.cuda_capture import Capture, Replayable
from stage_worker.executors.graph_batches import graph_for, graph_sizes, idle_batch, padded
from stage_worker.kv_pool import KvPool
from stage_worker.models.decoder import Decoder
from stage_worker.models.workspace import LayerBuffers

_TOLERANCE = 5e-2
"""Of the largest value: a replay may sum in another order than the step without a graph, in every layer."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """The stage's layers for a fixed number of rows.

    inputs: residual stream [rows, hidden], written before a replay. result: where it lies afterwards.
    """

    batch: StaticDecode
    inputs: torch.Tensor
    graph: Replayable
    result: torch.Tensor


class DecodeGraphs:
    """Graphs by their number of rows. Embedding, LM head and sampling stay outside.

    spare_block: of the pool, belongs to no sequence; what padding writes goes there.
    """

    def __init__(self, graphs: dict[int, DecodeGraph], spare_block: int) -> None:
        self._graphs = graphs
        self._sizes = sorted(graphs)
        self._spare_block = spare_block

    @property
    def sizes(self) -> list[int]:
        """Rows of the graphs, ascending."""
        return self._sizes

    def forward(self, batch: RaggedBatch, residual: torch.Tensor) -> torch.Tensor | None:
        """Run the layers on the residual stream [rows, hidden]; None if there is no graph for this batch.

        The result is valid until the next step.
        """
        size = graph_for(batch, self._sizes)
        if size is None:
            return None
        graph = self._graphs[size]
        if not graph.batch.load(padded(batch, size, self._spare_block)):
            return None
        graph.inputs[: batch.rows].copy_(residual)
        # Else what padding computes would be fed back to it, and grow from step to step.
        graph.inputs[batch.rows :].zero_()
        graph.graph.replay()
        return graph.result[: batch.rows]


@torch.inference_mode()
def capture_decode(
    decoder: Decoder, attention: StaticBackend, pool: KvPool, hidden: int, most_rows: int, capture: Capture
) -> DecodeGraphs | None:
    """Graphs for decode steps of all usual sizes, as far as device and library will have them.

    Says what they refuse, and why; None if that is everything.

    pool: has a spare block behind its last. hidden: values of the residual stream per token.
    """
    sizes = graph_sizes(most_rows)
    geometry, device = pool.geometry, pool.keys(0).device
    # One buffer for all: only one graph runs at a time.
    inputs = torch.zeros(sizes[-1], hidden, dtype=geometry.dtype, device=device)
    graphs: dict[int, DecodeGraph] = {}
    refused: dict[int, str] = {}
    for size in reversed(sizes):
        idle = idle_batch(size, pool.blocks, geometry.block_size)
        try:
            graphs[size] = _captured(decoder, attention.static(size), idle, inputs[:size], capture)
        except Exception as error:  # of the device, or of a library: too many rows for its workspace
            refused[size] = f"{type(error).__name__}: {error}"
    if refused:
        _log.warning("decode steps without CUDA graphs", rows=sorted(refused), reason=refused[max(refused)])
        # If the device itself is broken, nothing else would work either.
        check_device(device)
    if not graphs:
        return None
    _log.info("decode by CUDA graphs", rows=sorted(graphs))
    return DecodeGraphs(graphs, pool.blocks)


def _captured(
    decoder: Decoder, static: StaticDecode, idle: RaggedBatch, inputs: torch.Tensor, capture: Capture
) -> DecodeGraph:
    """One graph, after a replay that gave what the layers give without it. Raises what went wrong."""
    if not static.load(idle):
        raise ValueError(f"no room for {idle.rows} rows")

    def work() -> torch.Tensor:
        return decoder.layers(static.step(), inputs, LayerBuffers())

    inputs.zero_()
    graph, result = capture(work)
    # The same in all rows: they share the spare block, and the order of their writes is not defined.
    sample = torch.linspace(-1, 1, inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    expected = decoder.forward(idle, sample.repeat(len(inputs), 1)).float()
    if not static.load(idle):
        raise ValueError(f"no room for {idle.rows} rows")
    inputs.copy_(sample.expand_as(inputs))
    graph.replay()
    worst, scale = float((result.float() - expected).abs().max()), float(expected.abs().max())
    if not worst <= _TOLERANCE * scale:  # NaN is not
        raise ValueError(
            f"a replay of {idle.rows} rows differs by {worst:.3g}, with values up to {scale:.3g}, from the "
            "same step without a graph"
        )
    return DecodeGraph(static, inputs, graph, result)
