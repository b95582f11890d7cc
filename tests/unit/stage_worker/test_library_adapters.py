"""Adapters of models that the library's code computes: in float32 as the models merged with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.tiny import tiny_config
from tests.tiny_adapters import make_adapter, merged
from tests.tiny_models import hugging_face_greedy, random_prompts
from tests.torch_pipeline import GreedySampler, generate
from tidepipe_common.errors import ModelError
from tidepipe_common.settings.adapters import AdapterPlace

pytestmark = pytest.mark.usefixtures("trials_here")

PROMPTS = random_prompts([1, 7, 33, 20, 12, 50])
NEW_TOKENS = 8
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def base(model_type: str, folder: Path) -> Path:
    values = CONFIG_MAPPING[model_type]().to_dict()
    trial.reference(tiny_config(values, model_type), 3).save_pretrained(folder)
    return folder


def pipeline(model: Path, stages: int, adapters: tuple[AdapterPlace, ...]) -> list[Executor]:
    executors: list[Executor] = []
    for index in range(stages):
        backend = TorchBackend(
            str(model), device="cpu", dtype="float32", make_sampler=GreedySampler, adapters=adapters
        )
        layers = backend.description.shape.layers
        begin, end = (number * layers // stages for number in (index, index + 1))
        spec = StageSpec(index, stages, begin, end, 16, 64, 256)
        backend.configure(spec)
        # As after a fault: what is loaded stays, and adds what it adds once.
        executors.append(backend.configure(spec))
    return executors


@pytest.mark.parametrize(
    ("model_type", "targets", "stages"),
    [
        ("mixtral", ATTENTION, 1),
        ("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), 2),
        ("gpt2", ("c_attn", "c_proj", "c_fc"), 2),
    ],
)
def test_mixed_batches_equal_merged_models(
    model_type: str, targets: tuple[str, ...], stages: int, tmp_path: Path
) -> None:
    """Experts; products that are several in one; transposed weights under names of their own."""
    folder = base(model_type, tmp_path / "base")
    transposed = model_type == "gpt2"
    places = tuple(
        AdapterPlace(
            name, make_adapter(folder, tmp_path / name, seed=seed, targets=targets, transposed=transposed)
        )
        for seed, name in enumerate("ab")
    )
    models = [folder, *(merged(folder, one.folder, tmp_path / f"with-{one.name}") for one in places)]
    described = TorchBackend(str(folder), device="cpu", adapters=places).description
    of = ["", *(one.fingerprint for one in described.adapters)]
    wanted = [of[index % 3] for index in range(len(PROMPTS))]
    expected = [
        hugging_face_greedy(models[index % 3], [prompt], NEW_TOKENS)[0]
        for index, prompt in enumerate(PROMPTS)
    ]
    executors = pipeline(folder, stages, places)
    assert generate(executors, PROMPTS, NEW_TOKENS, chunk=20, stagger=1, adapters=wanted) == expected
    base_alone = hugging_face_greedy(folder, PROMPTS, NEW_TOKENS)
    assert all(one != plain for one, plain, own in zip(expected, base_alone, wanted, strict=True) if own)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    """The library has them merged, and sends only some of the tokens to each."""
    folder = base("mixtral", tmp_path / "base")
    place = AdapterPlace("mine", make_adapter(folder, tmp_path / "adapter", targets=("w1",)))
    with pytest.raises(ModelError, match=r"adapter mine: .*w1', but only .*q_proj.* can be adapted"):
        TorchBackend(str(folder), device="cpu", adapters=[place])
