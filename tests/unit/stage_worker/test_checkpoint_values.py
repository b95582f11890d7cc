"""Checkpoints as people have them: logits as Hugging Face computes them, over 1 and 2 stages, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.loading.open_checkpoint import open_checkpoint
from stage_worker.loading.stage_weights import check_weights
from tests.tiny_gguf import split_gguf, write_gguf
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import GREEDY, GreedySampler, run_step
from tidepipe_common.errors import ModelError
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.plan import Phase, PlanRow, SampledTokens, SequenceStart, StepPlan

PROMPTS = random_prompts([5, 20, 40])
Change = Callable[[Path], object]


def configure(**changes: object) -> Change:
    """Keys of config.json; `...` takes one out."""

    def change(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def store(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Other tensors in model.safetensors."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 0.2


def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def only_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def unexpected(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = noise(64)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = noise(8)
    tensors["model.layers.9.input_layernorm.weight"] = noise(64)


def index_beside(folder: Path) -> None:
    """An index that names other weights than model.safetensors has."""
    tensors = load_file(folder / "model.safetensors")
    other = {name: tensor + 0.1 for name, tensor in tensors.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class Case:
    name: str
    family: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)
    change: Change = lambda folder: None


WINDOWS = ["sliding_attention", "full_attention"] * 2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
CASES = [
    Case("mistral, layer_types", "mistral", change=configure(layer_types=WINDOWS)),
    Case("ministral", "mistral", change=configure(model_type="ministral", layer_types=WINDOWS)),
    Case("mistral, no window", "mistral", {"sliding_window": None}),
    Case(
        "qwen3, layer_types",
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "layer_types": WINDOWS},
    ),
    Case("qwen2, window not used", "qwen2", {"use_sliding_window": False}, configure(layer_types=...)),
    Case("smollm3, no_rope_layers", "smollm3", {"no_rope_layers": [1, 0, 0, 1]}),
    Case("tied, and another head", change=store(lambda t: t.update({"lm_head.weight": noise(300, 64)}))),
    Case(
        "tied, and the same head",
        change=store(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})),
    ),
    Case("tied, head only", change=store(only_head)),
    Case("no prefix", change=store(without_prefix)),
    Case(
        "a bare model",
        change=lambda f: (store(without_prefix)(f), configure(architectures=["LlamaModel"])(f)),
    ),
    Case("unexpected tensors", change=store(unexpected)),
    Case("index beside one file", change=index_beside),
    Case("bf16 named, fp32 stored", change=configure(dtype="bfloat16")),
    Case(
        "rope linear, old",
        change=configure(rope_parameters=..., rope_theta=5e3, rope_scaling={"type": "linear", "factor": 3}),
    ),
    Case(
        "rope dynamic",
        change=configure(rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
    ),
    Case("rope yarn", "qwen3", change=configure(rope_parameters=YARN)),
    Case("rope without theta", "smollm3", change=configure(rope_parameters=...)),
    Case("head_dim of its own", "qwen2", {"head_dim": 32}),
    Case("rope yarn, truncate null", change=configure(rope_parameters={**YARN, "truncate": None})),
    Case("biases", "llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "swish"}),
]


class Recording(GreedySampler):
    """Keeps the logits that it was given."""

    logits: torch.Tensor

    def sample(self, logits: torch.Tensor, keys: Sequence[int], positions: Sequence[int]) -> SampledTokens:
        self.logits = logits.clone()
        return super().sample(logits, keys, positions)


def our_logits(model: Path, stages: int) -> torch.Tensor:
    """Behind each prompt, all in one step."""
    samplers: list[Recording] = []

    def make(vocab_size: int, device: torch.device) -> Recording:
        samplers.append(Recording(vocab_size, device))
        return samplers[-1]

    executors: list[Executor] = []
    for index in range(stages):
        backend = TorchBackend(str(model), device="cpu", dtype="float32", make_sampler=make)
        begin, end = 4 * index // stages, 4 * (index + 1) // stages
        executors.append(backend.configure(StageSpec(index, stages, begin, end, 16, 16, 256)))
    rows = tuple(
        PlanRow(key, 0, len(prompt), prompt, tuple(range(3 * key, 3 * key + 3)), True)
        for key, prompt in enumerate(PROMPTS)
    )
    starts = tuple(SequenceStart(row.key, GREEDY, prompt_tokens=row.count) for row in rows)
    run_step(executors, StepPlan(1, Phase.PREFILL, rows, starts))
    return samplers[-1].logits


def their_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_equal_hugging_face_s(case: Case, tmp_path: Path) -> None:
    folder = make_tiny_model(case.family, tmp_path / "model", **case.options)
    case.change(folder)
    expected = their_logits(folder)
    for stages in (1, 2):
        torch.testing.assert_close(our_logits(folder, stages), expected, atol=1e-4, rtol=0)


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
GGUF_CASES: list[tuple[str, dict[str, Any], dict[str, object]]] = [
    ("llama", {"rope_parameters": LINEAR}, {"llama.rope.scale_linear": 4.0}),
    ("llama", {"rope_parameters": LINEAR}, {"llama.rope.scaling.factor": 4.0}),
    ("llama", {}, {"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.type": "none"}),
    ("llama", {}, {"llama.rope.scaling.factor": 0.0}),
    ("smollm3", {"no_rope_layer_interval": 4}, {}),
    (
        "qwen2",
        {"rope_parameters": YARN, "use_sliding_window": False},
        {
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 16,
        },
    ),
]


@pytest.mark.parametrize(("family", "options", "metadata"), GGUF_CASES, ids=str)
def test_gguf_logits_equal_hugging_face_s(
    family: str, options: dict[str, Any], metadata: dict[str, object], tmp_path: Path
) -> None:
    folder = make_tiny_model(family, tmp_path / "model", **options)
    path = write_gguf(folder, tmp_path / "model.gguf", metadata=metadata)
    torch.testing.assert_close(our_logits(path, 2), their_logits(folder), atol=1e-4, rtol=0)


def test_split_gguf(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    first = split_gguf(write_gguf(folder, tmp_path / "split" / "model.gguf"), 3)
    assert resolve_model(str(first.parent)) == first
    torch.testing.assert_close(our_logits(first, 2), their_logits(folder), atol=1e-4, rtol=0)
    second = first.with_name("model-00002-of-00003.gguf")
    with pytest.raises(ModelError, match="part 2 of a split model; give its first part"):
        open_checkpoint(second)
    second.unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.gguf: is missing"):
        open_checkpoint(first)
    first.unlink()
    with pytest.raises(ModelError, match="not the first one"):
        resolve_model(str(first.parent))


REFUSED: list[tuple[Change, str]] = [
    (configure(attention_multiplier=0.1), "attention_multiplier: not known for llama"),
    (
        configure(final_logit_softcapping=30.0, embedding_multiplier=12),
        "embedding_multiplier, final_logit_soft",
    ),
    (configure(layer_types=WINDOWS), "no sliding window is set"),
    (configure(mlp_bias=True), r"mlp\.gate_proj\.bias is missing"),
    (configure(tie_word_embeddings=False), r"tensor lm_head\.weight is missing"),
    (configure(num_hidden_layers=5), r"model\.layers\.4\..* is missing"),
    (configure(num_hidden_layers=10**9), "num_hidden_layers must be at most 10000, got 1000000000"),
    (configure(hidden_size=10**400), "hidden_size must be an integer"),
    (configure(rms_norm_eps=float("nan")), "config.json: not JSON: NaN is not a JSON number"),
    (configure(rope_parameters={"factor": 4.0}), "a scaling factor but no type"),
    (configure(rope_parameters={"rope_type": "linear", "factor": 0}), "factor must be above 0"),
    (
        configure(
            rope_parameters={"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}
        ),
        "low_freq_factor must be above 0 and below",
    ),
    (configure(rope_parameters={"rope_type": "longrope"}), "'longrope' is not supported"),
    (
        configure(rope_parameters={"rope_type": "yarn", "factor": 2, "mrope_section": [1]}),
        "no parameter mrope_section",
    ),
    (configure(rope_theta=0, rope_parameters=...), "theta must be above 1"),
    (
        configure(quantization_config={"quant_method": "gptq"}),
        "quantization_config: bits must be a whole number, got null",
    ),
    (configure(vocab_size=301), r"embed_tokens\.weight has shape \[300, 64\].*\[301, 64\]"),
    (store(lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.float8_e4m3fn)})), "F8_E4M3"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cut short"),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(
            b"version https://git-lfs.github.com/spec/v1\n"
        ),
        "git lfs pull",
    ),
    (
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors"),
        r"model-00001-of-00003\.safetensors: is missing",
    ),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "nested too deeply"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_right_is_refused_at_once(change: Change, message: str, tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=message):
        TorchBackend(str(folder), device="cpu")


REFUSED_GGUF: list[tuple[dict[str, object], str]] = [
    ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
    ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor is supported with yarn only"),
    ({"llama.attention.scale": 0.5}, r"llama\.attention\.scale is not known"),
    ({"llama.expert_count": 8}, "mixture-of-experts"),
    ({"split.count": 2}, "but not named so"),
    ({"llama.block_count": 4.5}, r"llama\.block_count must be one number, got 4\.5"),
    (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 2.0,
            "llama.rope.scaling.original_context_length": 0,
        },
        "original context length must be at least 1",
    ),
]


@pytest.mark.parametrize(("metadata", "message"), REFUSED_GGUF, ids=str)
def test_gguf_that_cannot_be_right_is_refused(
    metadata: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        open_checkpoint(write_gguf(folder, tmp_path / "model.gguf", metadata=metadata))


def test_gguf_with_a_bias_that_nobody_adds_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    store(lambda t: t.update({"model.layers.1.self_attn.k_proj.bias": noise(32)}))(folder)
    with pytest.raises(ModelError, match=r"not known here.*blk\.1\.attn_k\.bias"):
        open_checkpoint(write_gguf(folder, tmp_path / "model.gguf"))


def test_gguf_with_tensors_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("qwen3", tmp_path / "model")
    path = write_gguf(folder, tmp_path / "model.gguf", metadata={"qwen3.block_count": 3})
    with pytest.raises(ModelError, match=r"not known here.*blk\.3\."):
        open_checkpoint(path)


def test_keys_that_mean_nothing_are_allowed(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    configure(
        _name_or_path="x", unsloth_version="1", use_cache=True, temperature=0.7, id2label={"0": "a"},
        logit_scale=None, scale_embeddings=False, max_window_layers=28, attn_pdrop=0.1, torch_dtype="auto",
    )(folder)  # fmt: skip
    check_weights(open_checkpoint(folder))


def tokenizer_files(folder: Path, config: dict[str, object], template: str = "") -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    added = [
        {"id": 7, "content": "<|im_end|>", "special": True},
        {"id": 9, "content": "</s>", "special": True},
    ]
    tokenizer = {"added_tokens": added, "model": {"vocab": {"<end>": 11, "far": 4000}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("eos", "generation", "config", "template", "expected"),
    [
        (..., None, {"eos_token": "</s>"}, "", (9,)),
        (None, None, {"eos_token": {"content": "<end>"}}, "", (11,)),
        (5, None, {"eos_token": "</s>"}, "", (5, 9)),
        (5, {"eos_token_id": [7, 8]}, {"eos_token": "<|im_end|>"}, "", (7, 8)),
        (5, {"eos_token_id": 5}, {"eos_token": "</s>"}, "..<|im_end|>", (5, 9)),
        (..., {"eos_token_id": []}, {}, "..<|im_end|>", ()),
        (5, None, {}, "..<|im_end|>", (5, 7)),
        (5, None, {"chat_template": [{"name": "default", "template": "<|im_end|>"}]}, "", (5, 7)),
        (
            ...,
            None,
            {"eos_token": "<x>", "added_tokens_decoder": {"6": {"content": "<x>"}}},
            "",
            (6,),
        ),
        (..., None, {"eos_token": "unheard"}, "", (2,)),
        (5, None, {"eos_token": "far"}, "", (5,)),
        (-1, {"eos_token_id": [5, 4000]}, {}, "", (5,)),
        (..., None, {}, "", (2,)),
    ],
)
def test_end_of_output(
    eos: Any,
    generation: Any,
    config: dict[str, object],
    template: str,
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    configure(eos_token_id=eos)(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    tokenizer_files(folder, config, template)
    assert open_checkpoint(folder).spec.eos_token_ids == expected


def test_blocks_that_no_kernel_takes_are_named(tmp_path: Path) -> None:
    backend = TorchBackend(str(make_tiny_model("llama", tmp_path / "model")), device="cpu", dtype="float32")
    reasons = []
    for block_size in (8, 16):
        backend.configure(StageSpec(0, 1, 0, 4, block_size, 16, 256)).close()
        reasons.append(backend.description.slow_because)
    assert reasons == [
        "no native attention: it wants heads and KV blocks of multiples of 16, not of 16 and 8",
        "",
    ]
