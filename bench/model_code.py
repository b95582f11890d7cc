"""What the transformers library's code costs beside TidePipe's own: the families that both compute, in turn.

    python -m bench.model_code [FAMILY ...] [--shape 1b] [--rounds 2] -o OUT.json

Random weights in the shape of SmolLM2-135M or of TinyLlama-1.1B, bfloat16, two stages of one thread each, as
`bench.engine` runs them: processor time of the thread that computes, which holds on a busy machine too. Both
serve the same requests: one alone, then 32 at once. Prints tokens per second of the library's code as a share
of our own's, prompts and outputs apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine import KernelClock, Pipeline, add_engine_options, report

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
CODES = ("native", "transformers")
SHAPES: Mapping[str, Mapping[str, int]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}
REST: Mapping[str, Any] = {
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": None,
}
TOKENS = {"135m": (256, 48), "1b": (64, 24)}
"""Of the prompt and the output of each request."""


def make(family: str, shape: str, folder: Path) -> None:
    """A model of this family with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPES[shape], **REST)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def workload(requests: int, shape: str) -> list[dict[str, Any]]:
    """Prompts that share nothing."""
    generator = np.random.default_rng(requests)
    prompt, output = TOKENS[shape]
    return [{"prompt": generator.integers(3, 32000, prompt).tolist(), "out": output} for _ in range(requests)]


def seconds_of(model: Path, code: str, items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Processor seconds of all stages, by phase."""
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    options = parser.parse_args(["-", "--model", str(model), "--model-code", code])
    pipeline, clock = Pipeline(str(model), 2, options, items), KernelClock()
    with clock.watching():
        answers, virtual_s = pipeline.run(items, clock, 0.0)
    stages = [
        phases
        for name, phases in report(clock, answers, virtual_s)["seconds"].items()
        if name != "controller"
    ]
    return {phase: sum(one[phase]["total"] for one in stages) for phase in ("prefill", "decode")}


def compare(family: str, shape: str, rounds: int) -> dict[str, Any]:
    """Both codes, in turn."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(family, shape, Path(folder))
        seconds_of(Path(folder), CODES[1], workload(1, shape))  # what the library compiles
        for _ in range(rounds):
            for requests in (1, 32):
                for code in CODES:
                    seconds = seconds_of(Path(folder), code, workload(requests, shape))
                    found.setdefault(str(requests), {}).setdefault(code, []).append(seconds)
    return {"family": family, "shape": shape, "seconds": found}


def row(result: Mapping[str, Any]) -> str:
    """A line of the table."""
    cells = []
    for of_code in result["seconds"].values():
        for phase in ("prefill", "decode"):
            native, library = (statistics.median(one[phase] for one in of_code[code]) for code in CODES)
            cells.append(f"{native / library:.2f}")
    return " | ".join(["", result["family"], *cells, ""]).strip()


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--shape", choices=list(SHAPES), default="135m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    results = []
    for family in options.families:
        results.append(compare(family, options.shape, options.rounds))
        options.out.write_text(json.dumps(results, indent=1))
        print(row(results[-1]), flush=True)
    heads = [f"{name}, {phase}" for name in ("1 request", "32") for phase in ("prompts", "outputs")]
    print("\n".join(["", f"| family | {' | '.join(heads)} |", "|---" * 5 + "|", *map(row, results)]))


if __name__ == "__main__":
    main()
