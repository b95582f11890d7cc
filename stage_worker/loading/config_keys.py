"""The keys of a config.json that are known: what they say is computed, or is known not to matter.

A key that nobody knows may change what the model computes (a scaled residual stream, soft-capped logits), and
an answer that is wrong in silence is worse than none: see docs/decisions/032.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tidepipe_common.errors import ModelError

_READ = frozenset(
    {
        "architectures",
        "dtype",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "vocab_size",
    }
)
"""Keys that mean something to every family."""

# What transformers writes into every configuration, what training used, and how text is drawn.
_HARMLESS = re.compile(
    r"_.*|transformers.*|unsloth.*|torch_.*|neuron.*|forced_.*|output_.*|return_dict.*"
    r"|.*dropout.*|.*_pdrop|.*_drop|.*_token_ids?|.*_token|.*_id2label|.*label2id|id2label"
    r"|.*_coef|initializer_.*|gradient_.*|num_labels|problem_type|task_specific_params|finetuning_task"
    r"|auto_map|base_model.*|name_or_path|model_name|license|datasets?|tokenizer_class|prefix|is_decoder"
    r"|use_cache|use_bfloat16|use_flash_attn.*|attn_implementation|torchscript|pretraining_tp|cache_implementation"
    r"|max_window_layers|is_llama_config|max_sequence_length|model_max_length|seq_len(gth)?|chunk_size_feed_forward"
    r"|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature"
    r"|top_k|top_p|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size"
    r"|encoder_no_repeat_ngram_size|bad_words_ids|num_return_sequences|exponential_decay_length_penalty"
    r"|suppress_tokens|begin_suppress_tokens|remove_invalid_values|max_new_tokens"
)

_ROPE = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "finetuned",
        # transformers fills it in for every kind; it matters to those that read it.
        "original_max_position_embeddings",
    }
)
_ROPE_BY_KIND: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
}


def refuse_unknown_keys(
    config: Mapping[str, Any], family: str, of_family: frozenset[str], source: str
) -> None:
    """ModelError, naming them, if the configuration has keys whose meaning nobody here knows.

    of_family: those that mean something to it alone. Keys without a value (null, false, zero, empty) say
    nothing and may be there.
    """
    known = _READ | of_family
    unknown = [
        str(key)
        for key, value in config.items()
        if value and key not in known and not _HARMLESS.fullmatch(str(key))
    ]
    if unknown:
        raise ModelError(
            f"{source}: {', '.join(sorted(unknown))}: not known for {family}, and may change what the model "
            "computes; take it out of config.json if it does not (docs/reference/checkpoints.md)"
        )


def refuse_unknown_rope_keys(scaling: Mapping[str, Any], kind: str, source: str) -> None:
    """ModelError, naming them, if RoPE's parameters have keys that its kind does not read."""
    known = _ROPE | _ROPE_BY_KIND[kind]
    unknown = [str(key) for key, value in scaling.items() if value is not None and key not in known]
    if "factor" in unknown and kind == "default":
        raise ModelError(
            f"{source}: RoPE has a scaling factor but no type; add rope_type (such as linear), or remove "
            "the factor"
        )
    if unknown:
        raise ModelError(
            f"{source}: RoPE of type {kind} has no parameter {', '.join(sorted(unknown))}; "
            "take it out of config.json if it does not matter (docs/reference/checkpoints.md)"
        )
