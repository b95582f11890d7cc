"""The parts of the check, each a process that prints what it found.

`right` of a part says that nothing disagrees; figures are there to be read, and never make a part wrong.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine import KernelClock, Pipeline
from bench.peers.children import end_children_when_ended
from bench.quantized_checkpoints import write_quantized
from deploy.gpu_check.models import random_model
from deploy.gpu_check.throughput import compared
from stage_worker.attention.backend import AttentionBackend, AttentionContext
from stage_worker.attention.batch import RaggedBatch
from stage_worker.attention.choice import TORCH, Ranking, rank
from stage_worker.attention.cuda_attention import MAKERS, facts_of
from stage_worker.attention.torch_paged import TorchPagedAttention
from stage_worker.attention.trial import disagreement
from stage_worker.executors.torch_backend import GRAPHS_SWITCH
from stage_worker.kv_pool import KvGeometry, KvPool
from stage_worker.loading.open_checkpoint import open_checkpoint
from stage_worker.models.rope import RotaryTable
from tests.tiny_adapters import make_adapter, merged
from tests.tiny_models import hugging_face_greedy, make_tiny_model, random_prompts

Found = dict[str, Any]
Settings = dict[str, Any]
BLOCK = 16
TOKENS = 24
FAMILIES = ("llama", "qwen2", "qwen3", "smollm3")
BY_THE_LIBRARY = ("llama",)
"""Each is tried by the worker first, which takes seconds."""
PACKED = ("gptq", "awq", "int4", "fp8")
SAME_SHARE = 0.9
"""Of the first tokens that graphs decode, in bfloat16: sums in another order may tip one."""


@dataclass(frozen=True, slots=True)
class Answered:
    """tokens: of each answer. graph_rows: of decode steps that ran as CUDA graphs."""

    tokens: list[list[int]]
    seconds: float
    graph_rows: list[int]


def answers(
    model: Path, device: str, items: Sequence[dict[str, Any]], stages: int = 1, **options: Any
) -> Answered:
    """What our scheduler and executors say to each item in one process, all in flight together."""
    usual = {"dtype": "float32", "quantization": None, "policy": "auto", "block_size": BLOCK, "lora": None}
    usual |= {"prefill_tokens": 0, "layer_split": None, "microbatches": 0, "model_code": "auto"}
    pipeline = Pipeline(str(model), stages, Namespace(**{**usual, "device": device, **options}), items)
    began = time.perf_counter()
    said, _ = pipeline.run(items, KernelClock(), 0.0)
    seconds = time.perf_counter() - began
    rows = getattr(pipeline.executors[0], "graph_rows", [])
    return Answered([said[f"{number:06d}"] for number in range(len(items))], seconds, rows)


def _items(prompts: Sequence[Sequence[int]], tokens: int) -> list[dict[str, Any]]:
    return [{"prompt": list(prompt), "out": tokens} for prompt in prompts]


def exactness(settings: Settings) -> Found:
    """float32 greedy on the device against transformers on a CPU."""
    device, folder = settings["device"], Path(settings["folder"]) / "tiny"
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = False
    prompts = random_prompts([1, 7, 16, 33, 50, 9, 70, 12])
    cases: dict[str, bool] = {}
    for family in FAMILIES:
        model = make_tiny_model(family, folder / family)
        expected = hugging_face_greedy(model, prompts, TOKENS)
        for stages in (1, 2):
            got = answers(model, device, _items(prompts, TOKENS), stages).tokens
            cases[f"{family}, {stages} stages"] = got == expected
        if family in BY_THE_LIBRARY:
            library = answers(model, device, _items(prompts, TOKENS), 2, model_code="transformers").tokens
            cases[f"{family} by transformers' code"] = library == expected
    base = folder / "llama"
    for form in PACKED:
        packed = write_quantized(base, folder / form, form)
        numbers = write_quantized(base, folder / f"{form}-numbers", form, numbers=True)
        got = answers(packed, device, _items(prompts, TOKENS)).tokens
        cases[f"{form} as its numbers"] = got == hugging_face_greedy(numbers, prompts, TOKENS)
    cases["adapters as merged models"] = _adapted(base, folder, device, prompts)
    wrong = [name for name, same in cases.items() if not same]
    return {"right": not wrong, "cases": cases, **({"why": f"differs: {'; '.join(wrong)}"} if wrong else {})}


def _adapted(base: Path, folder: Path, device: str, prompts: Sequence[Sequence[int]]) -> bool:
    names = ["", "a", "b"]
    adapters = {name: make_adapter(base, folder / name, seed=seed) for seed, name in enumerate(names) if name}
    models = {name: merged(base, adapter, folder / f"{name}-merged") for name, adapter in adapters.items()}
    models[""] = base
    mine = [names[index % len(names)] for index in range(len(prompts))]
    expected = [
        hugging_face_greedy(models[name], [prompt], TOKENS)[0]
        for name, prompt in zip(mine, prompts, strict=True)
    ]
    items = [{**one, "adapter": name} for one, name in zip(_items(prompts, TOKENS), mine, strict=True)]
    lora = ",".join(f"{name}={adapter}" for name, adapter in adapters.items())
    return answers(base, device, items, lora=lora).tokens == expected


def attention(settings: Settings) -> Found:
    """Every back end that is there: does it agree with plain PyTorch, and how long does it take?"""
    model = random_model(Path(settings["folder"]), tiny=settings["tiny"])
    spec, device = open_checkpoint(model).spec, torch.device(settings["device"])
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rows, context = (4, 128) if settings["tiny"] else (64, 1024)
    blocks = rows * (context // BLOCK + 1)
    pool = KvPool(KvGeometry(spec.layers, spec.kv_heads, spec.head_dim, BLOCK, dtype), blocks, device, 1)
    rotary = RotaryTable(spec.rope, spec.head_dim, spec.context_length, device)
    about = AttentionContext(spec, 0, pool, rotary)
    reference = TorchPagedAttention(about)
    ranking = Ranking((TORCH,), {}) if device.type == "cpu" else rank(facts_of(about))
    found: dict[str, Any] = {name: {"not here": why} for name, why in ranking.refused.items()}
    with torch.inference_mode():
        for name in ranking.usable:
            try:
                backend = MAKERS[name](about)
                problem = disagreement(backend, reference, about) if name != TORCH else None
                if problem is not None:
                    found[name] = {"disagrees": problem}
                    continue
                found[name] = _attention_times(backend, about, rows, context)
            except Exception as error:  # whatever a library says of a device that it does not know
                found[name] = {"not here": f"{type(error).__name__}: {error}"[:300]}
    wrong = [name for name, one in found.items() if "disagrees" in one]
    why = {"why": f"disagree: {', '.join(wrong)} (left out when serving)"} if wrong else {}
    return {"right": TORCH in found and not wrong, "back_ends": found, **why}


def _attention_times(
    backend: AttentionBackend, about: AttentionContext, rows: int, context: int
) -> dict[str, float]:
    """Milliseconds of one layer: a decode step of so many rows, and the prompt of one."""
    width, spec, pool = context // BLOCK + 1, about.spec, about.pool
    tables = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    full, one = np.full(rows, context, dtype=np.int32), np.ones(rows, dtype=np.int32)
    decode = RaggedBatch(full, one, tables, BLOCK)
    prompt = RaggedBatch(np.zeros(1, np.int32), full[:1], tables[:1], BLOCK)
    device, dtype = pool.keys(0).device, pool.geometry.dtype
    times = {}
    for name, batch in (("decode_ms", decode), ("prompt_ms", prompt)):
        heads = torch.randn(batch.tokens, spec.query_size + 2 * spec.kv_size).to(device, dtype)
        step = backend.begin(batch)

        def once(step: Any = step, heads: torch.Tensor = heads) -> None:
            step.attend(0, heads.clone(), None)

        times[name] = round(1e3 * _seconds(once, device), 4)
    return times


def _seconds(work: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    def waited() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        work()
    measured = []
    for _ in range(rounds):
        waited()
        began = time.perf_counter()
        work()
        waited()
        measured.append(time.perf_counter() - began)
    return statistics.median(measured)


def graphs(settings: Settings) -> Found:
    """Decoding with CUDA graphs and without: the same answers, and how much sooner."""
    device = settings["device"]
    model = random_model(Path(settings["folder"]), tiny=settings["tiny"])
    rows, tokens = (4, 8) if settings["tiny"] else (32, 64)
    items = _items(random_prompts([16] * rows, seed=3), tokens)
    dtype = "float32" if device == "cpu" else "bfloat16"
    found: dict[str, Answered] = {}
    for name, switch in (("without", "0"), ("with", "1")):
        os.environ[GRAPHS_SWITCH] = switch
        found[name] = answers(model, device, items, dtype=dtype)
    pairs = list(zip(found["with"].tokens, found["without"].tokens, strict=True))
    same = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True)) / (rows * tokens)
    # The prompt's step gives the first one.
    begun = sum(one[1] == other[1] for one, other in pairs) / rows
    figures = {f"tokens_per_s_{name}": round(rows * tokens / one.seconds, 1) for name, one in found.items()}
    captured = found["with"].graph_rows
    why = ""
    if begun < SAME_SHARE:
        why = f"{begun:.2f} of the first decoded tokens are the same with graphs and without"
    elif device != "cpu" and not captured:
        why = "no graph was captured; the log says why"
    told = {"first_same_share": begun, "same_share": round(same, 4), "graph_rows": captured, **figures}
    return {"right": not why, **told, **({"why": why} if why else {})}


def throughput(settings: Settings) -> Found:
    """bfloat16 weights: the live system, and vLLM."""
    model = random_model(Path(settings["folder"]), tiny=settings["tiny"])
    return compared(model, settings, "float32" if settings["device"] == "cpu" else "bfloat16")


def four_bits(settings: Settings) -> Found:
    """The same in 4 bits, as GPTQ stores them in groups of 32."""
    folder = Path(settings["folder"])
    packed = write_quantized(random_model(folder, tiny=settings["tiny"]), folder / "four-bits", "gptq")
    return compared(packed, settings, "float32" if settings["device"] == "cpu" else "float16")


PARTS: dict[str, Callable[[Settings], Found]] = {
    "exactness": exactness,
    "attention": attention,
    "graphs": graphs,
    "throughput": throughput,
    "four bits": four_bits,
}


def main() -> None:
    """Run one and print what it found, as the last line."""
    end_children_when_ended()
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(PARTS[name](settings)), flush=True)


if __name__ == "__main__":
    main()
