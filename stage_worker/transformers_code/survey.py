"""`python -m stage_worker.transformers_code.survey [NAME ..]`: tries the library's language models.

Each by the kinds of layers that its own defaults have, or published models of it. Writes what was found, by
name, to architectures.json beside this file (those that are named anew, the others as they were), and a page
to docs/reference. What is found is of the installed version; a model that somebody starts is tried by its own
configuration anyway.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES
from transformers.utils import logging

from stage_worker.models.spec import SUPPORTED_ARCHITECTURES
from stage_worker.transformers_code.architectures import FOUND, by_reason, found
from stage_worker.transformers_code.attention_calls import UnsuitableError
from stage_worker.transformers_code.loading import skeleton_of, text_alone
from stage_worker.transformers_code.trial import tried_small

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"

_CONVOLUTIONS = ["conv", "conv", "full_attention"] * 5 + ["conv"]
_INDEXED = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_USUAL: dict[str, tuple[dict[str, Any], ...]] = {
    "bloom": ({"n_layer": 24},),
    "dbrx": ({"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000.0}},),
    "dots1": (
        {
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
    ),
    "falcon": ({}, {"new_decoder_architecture": True, "num_kv_heads": 8}, {"alibi": True}),
    "gemma4_text": (
        {
            "num_hidden_layers": 35,
            "num_kv_shared_layers": 20,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        },
        {
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 2,
        },
    ),
    "qwen4_exp": ({"text_config": _INDEXED},),
    "qwen4_exp_text": (_INDEXED,),
    "lfm2": ({"num_hidden_layers": 16, "layer_types": _CONVOLUTIONS},),
    "lfm2_moe": ({"num_hidden_layers": 16, "layer_types": _CONVOLUTIONS},),
}
"""What published models say where the library's defaults say nothing, or something that no model has.

Of several kinds of models all must run.
"""


def page(version: str, architectures: Mapping[str, str]) -> str:
    """The page of the documentation."""
    runs = sorted(name for name, why in architectures.items() if not why)
    lines = [
        "# Architectures: what runs, and why others do not",
        "",
        "<!-- Made by `python -m stage_worker.transformers_code.survey`; do not edit. -->",
        "",
        f"All {len(architectures)} causal language models of transformers {version}, by their `model_type`: "
        f"{len(runs)} run. Tried out, not listed: a tiny",
        "random model with the kinds of layers that the architecture's defaults have gave the library's own "
        "logits in float32, split into",
        "one, two and three stages ([how](checkpoints.md)). `tidepipe models` shows the same, and "
        "`tidepipe models MODEL` tries out a model of yours.",
        "",
        "## Run",
        "",
        f"By TidePipe's own code: {', '.join(SUPPORTED_ARCHITECTURES)}. By the library's:",
        "",
        ", ".join(name for name in runs if name not in SUPPORTED_ARCHITECTURES) + ".",
        "",
        "## Do not run",
        "",
        "| because of | architectures |",
        "|---|---|",
    ]
    for reason, names in by_reason(architectures).items():
        cells = ", ".join(f"{name} ({_cell(what)})" if what else name for name, what in names)
        lines.append(f"| {reason} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")[:120]


def usual_configs(name: str) -> Iterator[PretrainedConfig]:
    """The library's configuration of each kind of models of an architecture."""
    for usual in _USUAL.get(name, ({},)):
        config = text_alone(CONFIG_MAPPING[name](**copy.deepcopy(usual)))
        if getattr(config, "is_decoder", None) is False:
            # One of those that are encoders unless somebody says otherwise.
            config.is_decoder = True
        yield config


def tried(names: Sequence[str]) -> dict[str, str]:
    """Why each does not run; empty: it does."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    reasons = {}
    for name in names:
        try:
            for usual in usual_configs(name):
                try:
                    tried_small(usual.to_dict(), usual.model_type)
                except UnsuitableError:
                    # What its layers are says more than what was wrong with a tiny model of them.
                    skeleton_of(usual, torch.float32)
                    raise
            reasons[name] = ""
        except UnsuitableError as error:
            reasons[name] = str(error)
        except Exception as error:  # of the library's defaults
            said = " ".join(f"{type(error).__name__}: {error}".split())
            reasons[name] = f"defaults that the library refuses ({said})"[:300]
        print(f"{name}: {reasons[name] or 'runs'}", file=sys.stderr)
    return reasons


def main() -> None:
    """Entry point."""
    version = transformers.__version__
    known = dict(found()[1]) if FOUND.is_file() and found()[0] == version else {}
    known.update(tried(sys.argv[1:] or sorted(NAMES)))
    text = json.dumps({"transformers": version, "architectures": dict(sorted(known.items()))}, indent=1)
    FOUND.write_text(text + "\n")
    if PAGE.parent.is_dir():
        PAGE.write_text(page(version, known))


if __name__ == "__main__":
    main()
