"""Adapters of a stage: in float32 each row gets what the base merged with its adapter would give it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.quantized_checkpoints import write_quantized
from stage_worker.executors.protocol import PlanError, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.models.native.library import load_kernels
from tests.tiny_adapters import ALL, PREFIX, make_adapter, merged
from tests.tiny_models import hugging_face_greedy, make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.settings.adapters import AdapterPlace

PROMPTS = random_prompts([1, 7, 16, 33, 50, 9, 70, 12])
NEW_TOKENS = 12
KINDS: tuple[Mapping[str, Any], ...] = (
    {"rank": 4, "alpha": 8},
    {"rank": 9, "alpha": 16, "use_rslora": True, "targets": ("q_proj", "v_proj"), "layers": (0, 3)},
    {
        "rank": 2,
        "targets": ("k_proj", "o_proj", "up_proj", "down_proj"),
        "rank_pattern": {"down_proj": 5, r"layers\.1\.self_attn\.o_proj": 3},
        "alpha_pattern": {"up_proj": 12.5},
    },
)
NAMES = ("", "a", "b", "c")


class Adapted:
    """A base, three adapters, and what the merged models say to the prompts that have each of them."""

    def __init__(self, family: str, folder: Path) -> None:
        self.base = make_tiny_model(family, folder / "base")
        self.places = tuple(
            AdapterPlace(name, make_adapter(self.base, folder / name, seed=seed, **kind))
            for seed, (name, kind) in enumerate(zip(NAMES[1:], KINDS, strict=True))
        )
        models = [
            self.base,
            *(merged(self.base, one.folder, folder / f"with-{one.name}") for one in self.places),
        ]
        self.expected = [
            hugging_face_greedy(models[index % len(models)], [prompt], NEW_TOKENS)[0]
            for index, prompt in enumerate(PROMPTS)
        ]

    def answers(self, stages: int, **options: Any) -> list[list[int]]:
        described = TorchBackend(str(self.base), device="cpu", adapters=self.places).description
        of = {"": "", **{one.name: one.fingerprint for one in described.adapters}}
        wanted = [of[NAMES[index % len(NAMES)]] for index in range(len(PROMPTS))]
        executors = make_pipeline(self.base, stages, adapters=self.places, **options)
        return generate(executors, PROMPTS, NEW_TOKENS, chunk=20, stagger=1, adapters=wanted)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapted]:
    known: dict[str, Adapted] = {}

    def make(family: str) -> Adapted:
        if family not in known:
            known[family] = Adapted(family, tmp_path_factory.mktemp(family))
        return known[family]

    return make


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize(("family", "stages"), [("llama", 1), ("qwen2", 2), ("qwen3", 3)])
def test_mixed_batches_equal_merged_models(
    family: str, stages: int, native: str, made: Callable[[str], Adapted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", native)
    adapted = made(family)
    assert len({tuple(one) for one in adapted.expected}) == len(PROMPTS)
    assert adapted.answers(stages) == adapted.expected


@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "int8"), ("bfloat16", None)])
def test_kernels_and_products_one_by_one_agree(
    dtype: str,
    quantization: str | None,
    made: Callable[[str], Adapted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that cannot be merged exactly: with them what is added comes to the same by both ways."""
    if load_kernels(getattr(torch, dtype), 1) is None:
        pytest.skip("no C compiler")
    adapted = made("llama")
    whole = adapted.answers(2, dtype=dtype, quantization=quantization)
    monkeypatch.setattr(
        "stage_worker.executors.torch_compute.Compute.stack", lambda *arguments, **options: None
    )
    apart = adapted.answers(2, dtype=dtype, quantization=quantization)
    same = sum(
        a == b for one, other in zip(whole, apart, strict=True) for a, b in zip(one, other, strict=True)
    )
    # Sums in another order may tip a token of a random model in bfloat16, and what follows from it.
    assert same >= 0.8 * len(PROMPTS) * NEW_TOKENS


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    one = make_adapter(base, tmp_path / "one", seed=1)
    same = make_adapter(base, tmp_path / "same", seed=1)
    scaled = make_adapter(base, tmp_path / "scaled", seed=1, alpha=9)
    other = make_adapter(base, tmp_path / "other", seed=2)
    places = [AdapterPlace(folder.name, folder) for folder in (one, same, scaled, other)]
    described = TorchBackend(str(base), device="cpu", adapters=places).description
    first, second, third, fourth = (adapter.fingerprint for adapter in described.adapters)
    assert first == second
    assert len({first, third, fourth}) == 3


def test_an_unknown_adapter_is_refused(tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    with pytest.raises(PlanError, match="does not have"):
        generate(make_pipeline(base, 1), PROMPTS[:1], 1, adapters=["0" * 32])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peft_type": "IA3"}, "only LORA adapters"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"task_type": "SEQ_CLS"}, "only adapters for CAUSAL_LM"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base's weights"),
        ({"r": 5}, "its rank is to be 5"),
        ({"r": 0}, "r must be a whole number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number"),
        ({"target_modules": [*ALL, "lm_head"]}, "has nothing of lm_head"),
        ({"target_modules": ["q_proj"]}, "of its configuration do not name"),
        ({"layers_to_transform": 0}, "of its configuration do not name"),
        ({"layers_to_transform": ["0"]}, "must be numbers of layers"),
        ({"target_modules": None}, "target_modules must be"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "too involved"),
        ({"alpha_pattern": {"(": 3}}, "no pattern"),
    ],
)
def test_what_is_not_served_is_said(options: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter"))
    config = place.folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(options)))
    with pytest.raises(ModelError, match="adapter mine: ") as error:
        TorchBackend(str(base), device="cpu", adapters=[place])
    assert said in str(error.value)


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", (4, 300), "embeddings"),
        (f"{PREFIX}lm_head.weight", (300, 64), "whole modules"),
        (f"{PREFIX}lm_head.lora_A.weight", (4, 64), "only down_proj"),
        (f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight", (4, 64), "no such layer"),
        (f"{PREFIX}{LAYER}.lora_A.weight", (4, 65), "made for another base (it names 'somebody/base')"),
        (f"{PREFIX}{LAYER}.lora_B.weight", (65, 4), "made for another base"),
        (f"{PREFIX}{LAYER}.lora_B.weight", None, f"lora_B of {LAYER} is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, shape: tuple[int, ...] | None, said: str, tmp_path: Path
) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter"))
    file = place.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, file)
    with pytest.raises(ModelError) as error:
        TorchBackend(str(base), device="cpu", adapters=[place])
    assert said in str(error.value)


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter"))
    file = place.folder / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="has type I32"):
        TorchBackend(str(base), device="cpu", adapters=[place])


def test_what_does_not_fit_into_memory_is_not_loaded(tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter", rank=64))
    spec = StageSpec(0, 1, 0, 4, 16, 8, 64)
    plain = TorchBackend(str(base), device="cpu", dtype="float32", memory_budget=1 << 30).configure(spec)
    budget = plain.weight_bytes + plain.kv_bytes + 1000
    backend = TorchBackend(
        str(base), device="cpu", dtype="float32", memory_budget=budget, adapters=[place, place]
    )
    with pytest.raises(ConfigError, match=r"of adapters, without a KV block yet; .* give fewer adapters"):
        backend.configure(spec)


@pytest.mark.parametrize("form", ["gptq", "int8"])
def test_beside_codes_as_beside_their_numbers(form: str, tmp_path: Path) -> None:
    base = make_tiny_model("qwen2", tmp_path / "base", use_sliding_window=False)
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter"))
    packed = write_quantized(base, tmp_path / "packed", form)
    numbers = write_quantized(base, tmp_path / "numbers", form, numbers=True)
    described = TorchBackend(str(base), device="cpu", adapters=[place]).description
    wanted = ["", described.adapters[0].fingerprint] * 4
    answers = [
        generate(make_pipeline(packed, stages, adapters=[place]), PROMPTS, 8, adapters=wanted)
        for stages in (1, 3)
    ]
    alone = generate(make_pipeline(merged(numbers, place.folder, tmp_path / "merged"), 1), PROMPTS, 8)
    assert answers[0] == answers[1]
    assert answers[0][1::2] == alone[1::2] != answers[0][::2]


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    base = make_tiny_model("llama", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(base, tmp_path / "adapter"))
    (place.folder / "adapter_model.safetensors").rename(place.folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="unpickling"):
        TorchBackend(str(base), device="cpu", adapters=[place])
