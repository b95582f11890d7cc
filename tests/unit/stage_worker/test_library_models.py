"""Models computed by the transformers library's code: admitted by trial, read, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.loading.open_checkpoint import open_checkpoint
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.attention_calls import UnsuitableError
from stage_worker.transformers_code.tiny import tiny_config
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import GreedySampler, generate
from tidepipe_common.errors import ModelError

RUN = {
    "merged experts": "mixtral",
    "sinks and windows": "gpt_oss",
    "soft caps, a scaled embedding": "gemma2",
    "learned positions, transposed weights": "gpt2",
    "keys and values of different widths": "deepseek_v3",
    "multipliers": "granite",
    "chunks, a router that returns its choices": "llama4_text",
    "positions added to scores (ALiBi)": "bloom",
    "inputs of each layer, shared keys, several hidden states": "gemma3n_text",
}
REFUSED = {
    "recurrent": ("mamba", "recurrent layers.*MambaMixer"),
    "partly recurrent": ("jamba", "recurrent layers.*JambaMambaMixer"),
    "encoder": ("bert", "sees later tokens"),
}


def values(model_type: str) -> dict[str, Any]:
    made: dict[str, Any] = CONFIG_MAPPING[model_type]().to_dict()
    return made


@pytest.mark.parametrize("what", RUN)
def test_an_architecture_in_stages_gives_the_librarys_own_logits(what: str) -> None:
    trial.tried(values(RUN[what]))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_split_is_refused_by_name(what: str) -> None:
    model_type, reason = REFUSED[what]
    with pytest.raises(UnsuitableError, match=reason):
        trial.tried(values(model_type))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral in several shards."""
    folder = tmp_path_factory.mktemp("mixtral")
    model = trial.reference(tiny_config(values("mixtral"), "mixtral"), 3)
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder


def pipeline(model: Path, stages: int) -> list[Executor]:
    executors: list[Executor] = []
    for index in range(stages):
        backend = TorchBackend(
            str(model), device="cpu", dtype="float32", make_sampler=GreedySampler, model_code="transformers"
        )
        layers = backend.description.shape.layers
        begin, end = (number * layers // stages for number in (index, index + 1))
        executors.append(backend.configure(StageSpec(index, stages, begin, end, 16, 64, 256)))
    return executors


def expected(folder: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


@pytest.mark.parametrize("stages", [1, 2])
def test_greedy_tokens_are_the_librarys(mixtral: Path, stages: int) -> None:
    prompts = random_prompts([5, 20, 40])
    wanted = expected(mixtral, prompts, 6)
    assert generate(pipeline(mixtral, stages), prompts, 6, chunk=9, stagger=2) == wanted


def test_a_native_family_may_be_computed_so_too(tmp_path: Path, trials_here: None) -> None:
    folder = make_tiny_model("llama", tmp_path)
    prompts = random_prompts([5, 20])
    assert generate(pipeline(folder, 2), prompts, 4) == expected(folder, prompts, 4)


def test_of_a_model_that_sees_the_text_model_is_served(tmp_path: Path, trials_here: None) -> None:
    """Its layers get values that are made of token ids: they come to the second stage with hidden states."""
    text, whole = tmp_path / "text", tmp_path / "whole"
    trial.reference(tiny_config(values("gemma3n_text"), "gemma3n_text"), 3).save_pretrained(text)
    whole.mkdir()
    tensors = load_file(text / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model.", 1): one for name, one in tensors.items()}
    save_file(renamed, whole / "model.safetensors")
    config = {"model_type": "gemma3n", "text_config": json.loads((text / "config.json").read_text())}
    (whole / "config.json").write_text(json.dumps(config))
    prompts = random_prompts([5, 20])
    assert generate(pipeline(whole, 2), prompts, 5, chunk=9) == expected(text, prompts, 5)


def damaged(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder in one file, with other tensors."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    change(tensors)
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


EXPERT = "model.layers.3.block_sparse_moe.experts.5.w1.weight"
DAMAGED: dict[str, tuple[Any, str]] = {
    "missing": (lambda tensors: tensors.pop("model.layers.2.self_attn.q_proj.weight"), "q_proj.*is missing"),
    "an expert missing": (lambda tensors: tensors.pop(EXPERT), "layers.3.*experts"),
    "misshapen": (
        lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}),
        r"shape \[5\], the configuration asks for \[64\]",
    ),
    "an expert misshapen": (
        lambda tensors: tensors.update({EXPERT: torch.zeros(7, 64)}),
        "layers.3.*experts",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_checkpoint_is_refused_when_its_worker_starts(
    mixtral: Path, tmp_path: Path, what: str
) -> None:
    change, reason = DAMAGED[what]
    folder = damaged(mixtral, tmp_path, change)
    with pytest.raises(ModelError, match=reason):
        TorchBackend(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mixtral9"}, "does not know 'mixtral9'"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "such code is never run"),
        ({"num_hidden_layers": 10**9}, "1 to 400 can be split"),
        ({"num_attention_heads": "many"}, "refuses its configuration"),
        ({"sliding_window": -5}, "a window of -5 tokens"),
    ],
)
def test_a_configuration_of_the_future_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsuitableError, match=reason):
        trial.tried({**values("mixtral"), **change})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mixtral9"}, "mixtral9 cannot be run: transformers .* does not know 'mixtral9'"),
        (
            {"model_type": "mixtral9", "transformers_version": "99.0"},
            "was written by transformers 99.0, here is .*: a newer TidePipe may know it",
        ),
        ({"num_attention_heads": 0}, "others of this family run: see what differs"),
        ({"dtype": ["float32"]}, "unsupported data type"),
        ({"architectures": ["MixtralForSequenceClassification"]}, "not a language model with an LM head"),
        ({"remark": "x" * (5 << 20)}, "too large"),
        ({"quantization_config": {"quant_method": "torchao"}}, "'torchao' is not supp"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(
    mixtral: Path, tmp_path: Path, trials_here: None, change: dict[str, object], reason: str
) -> None:
    folder = damaged(mixtral, tmp_path, lambda tensors: None)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=reason):
        open_checkpoint(folder)
