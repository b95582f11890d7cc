"""The trial of an architecture: a tiny random model of it, in stages, must give the library's own logits.

The tiny model is written to a folder as people's checkpoints are, and read, cut and computed as theirs:
several sequences in one step, prompts in pieces, blocks in any order.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from stage_worker.attention.backend import MakeAttention
from stage_worker.attention.batch import RaggedBatch
from stage_worker.executors.library_code import products_of
from stage_worker.executors.torch_compute import make_compute
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.safetensors_folder import stored_tensors
from stage_worker.loading.stage_weights import StageSlice
from stage_worker.models.spec import ModelSpec
from stage_worker.transformers_code import loading
from stage_worker.transformers_code.attention_calls import UnsuitableError
from stage_worker.transformers_code.decoder import TransformersDecoder
from stage_worker.transformers_code.generic_spec import experts_of, spec_of
from stage_worker.transformers_code.products import Products
from stage_worker.transformers_code.tiny import tiny_config

STAGES = (1, 2, 3)
_MOST_LAYERS = 400
"""Each takes milliseconds to build, twice what the largest published models have."""
_MOST_EXPERTS = 10_000
_BLOCK = 16
_BLOCKS = 24
_PROMPTS = (37, 5, 23)
"""Tokens: longer than the windows of a tiny model, and than a block."""
_STEPS: Sequence[Sequence[int]] = ((11, 5, 0), (8, 0, 22), (17, 0, 0), (1, 0, 1))
"""Tokens of each sequence in each step."""
_TOLERANCE = 2e-4
"""Of logits whose spread is 1."""
_REFERENCE_ATTENTION = {"falcon": "sdpa"}
"""The library's attention to compare with, where not `eager`: Falcon's adds ALiBi to its scores twice."""


def tried(values: Mapping[str, Any]) -> ModelSpec:
    """The spec of a model that can be run; UnsuitableError, with the reason, for one that cannot."""
    config = loading.config_of(values)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 1 <= layers <= _MOST_LAYERS:
        raise UnsuitableError(f"it has {layers!r} layers, and 1 to {_MOST_LAYERS} can be split")
    experts = experts_of(config.get_text_config())
    if experts > _MOST_EXPERTS:
        raise UnsuitableError(f"it has {experts} experts, {_MOST_EXPERTS} at most")
    spec = spec_of(loading.skeleton_of(config, torch.float32), (), "float32")
    tried_small(config.to_dict(), str(config.model_type))
    return spec


def tried_small(values: Mapping[str, Any], model_type: str) -> None:
    """UnsuitableError, with the reason, unless a tiny model of a configuration's kinds can be run."""
    try:
        tiny = tiny_config(dict(values), model_type)
    except Exception as error:  # whatever the library's checks have to say
        raise UnsuitableError(f"no tiny model of it to try it out with ({_said(error)})") from error
    compute = make_compute(torch.device("cpu"), torch.float32, 1)
    passes(tiny, compute.attention, products_of(compute))


@torch.inference_mode()
def passes(config: PretrainedConfig, make: MakeAttention, products: Products, seed: int = 0) -> None:
    """UnsuitableError, with the reason, unless a model of this (tiny) configuration can be served."""
    skeleton = loading.skeleton_of(config, torch.float32)
    model = reference(config, seed)
    vocab = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(2, vocab, (count,), generator=generator) for count in _PROMPTS]
    expected = [_logits(model, prompt) for prompt in prompts]
    with tempfile.TemporaryDirectory(prefix="tidepipe-trial-") as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            raise UnsuitableError(f"the library cannot write it ({_said(error)})") from error
        path = Path(folder)
        spec = spec_of(skeleton, (), "float32")
        values = json.loads(config.to_json_string())
        checkpoint = Checkpoint(path, spec, stored_tensors(path), library_config=values)
        for stages in STAGES:
            if stages > spec.layers:
                break
            try:
                got = _split(checkpoint, spec, stages, prompts, make, products)
            except UnsuitableError:
                raise
            except Exception as error:
                what = _said(error).replace(f"{folder}/", "")
                raise UnsuitableError(
                    f"code that fails where it is split ({_stages(stages)}: {what})"
                ) from error
            _compare(got, expected, stages)


def reference(config: PretrainedConfig, seed: int) -> Any:
    """The library's own model, with random weights that make its logits differ."""
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=torch.float32,
            attn_implementation=_REFERENCE_ATTENTION.get(config.model_type, "eager"),
        )
    except Exception as error:
        raise UnsuitableError(f"the library cannot build it ({_said(error)})") from error
    for parameter in model.parameters():
        # Fresh weights are so small that attention hardly matters, and biases, sinks and norms are 0 or 1.
        spread = 0.2 if parameter.dim() > 1 else 0.3
        noise = torch.empty_like(parameter).normal_(0, spread)
        parameter.data = noise if parameter.dim() > 1 else parameter.data + noise
    for name, buffer in model.named_buffers():
        if name.endswith("bias") and buffer.is_floating_point():
            buffer.data.normal_(0, 0.1)
    return model.eval()


def _logits(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    try:
        result: torch.Tensor = model(input_ids=prompt[None], use_cache=False).logits[0]
    except Exception as error:
        raise UnsuitableError(f"the library cannot run it ({_said(error)})") from error
    return result


def _split(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    stages: int,
    prompts: Sequence[torch.Tensor],
    make: MakeAttention,
    products: Products,
) -> list[torch.Tensor]:
    """The logits of all tokens of the prompts, computed by so many stages."""
    cpu = torch.device("cpu")
    decoders: list[TransformersDecoder] = []
    model = loading.LibraryModel(checkpoint)
    for stage in range(stages):
        begin, end = (number * spec.layers // stages for number in (stage, stage + 1))
        part = StageSlice(begin, end, stage == 0, stage == stages - 1)
        geometry = KvGeometry(end - begin, spec.kv_heads, spec.head_dim, _BLOCK, torch.float32)
        loaded = model.load(part, torch.float32, cpu, products)
        decoders.append(loaded.decoder(spec, KvPool(geometry, _BLOCKS, cpu), cpu, make))
    tables = np.random.default_rng(0).permutation(_BLOCKS).astype(np.int32).reshape(len(prompts), -1)
    done = [0] * len(prompts)
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in _STEPS:
        rows = [row for row, count in enumerate(step) if count]
        batch = RaggedBatch(
            np.array([done[row] for row in rows], dtype=np.int32),
            np.array([step[row] for row in rows], dtype=np.int32),
            np.ascontiguousarray(tables[rows]),
            _BLOCK,
        )
        ids = torch.cat([prompts[row][done[row] : done[row] + step[row]] for row in rows])
        hidden = decoders[0].embed(ids)
        for decoder in decoders:
            hidden = decoder.forward(batch, hidden)
        parts = torch.split(decoders[-1].logits(hidden), [step[row] for row in rows])
        for row, part_of in zip(rows, parts, strict=True):
            done[row] += step[row]
            found[row].append(part_of)
    return [torch.cat(parts) for parts in found]


def _compare(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], stages: int) -> None:
    spread = float(torch.cat(list(expected)).std()) or 1.0
    if not all(bool(torch.isfinite(one).all()) for one in expected):
        raise UnsuitableError("the library's own logits are not finite")
    worst = (
        max(float((mine - theirs).abs().max()) for mine, theirs in zip(got, expected, strict=True)) / spread
    )
    if not worst <= _TOLERANCE:
        raise UnsuitableError(
            f"logits that are not the library's own ({_stages(stages)}, by {worst:.2g} of their spread)"
        )


def _stages(count: int) -> str:
    return "in one piece" if count == 1 else f"in {count} stages"


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
