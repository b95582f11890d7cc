"""A broken adapter beside its base: who has it ends alone and in words, others get what they get without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from stage_worker.executors.protocol import Executor, StageSpec
from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.sampling.sampler import Sampler
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.tiny import tiny_config
from tests.tiny_adapters import make_adapter
from tests.tiny_models import make_tiny_model
from tidepipe_common.settings.adapters import AdapterPlace
from tidepipe_common.types.plan import DecodeRows, Phase, PlanRow, SampledTokens, SequenceStart, StepPlan
from tidepipe_common.types.sampling import Pooling, SamplingParams

pytestmark = pytest.mark.usefixtures("trials_here")

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (7, 8, 9, 10, 11)


def made(kind: str, folder: Path) -> tuple[Path, Path]:
    """A base, and an adapter of it with one value that is none."""
    if kind == "library":
        base = folder / "base"
        values = CONFIG_MAPPING["phi3"]().to_dict()
        trial.reference(tiny_config(values, "phi3"), 3).save_pretrained(base)
        adapter = make_adapter(base, folder / "adapter", targets=("o_proj",))
    else:
        base = make_tiny_model("llama", folder / "base")
        adapter = make_adapter(base, folder / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    next(one for name, one in tensors.items() if "layers.1." in name and "lora_B" in name)[2, 1] = torch.nan
    save_file(tensors, file)
    return base, adapter


def prefill(step: int, adapters: dict[int, str], sampling: SamplingParams = GREEDY) -> StepPlan:
    rows = tuple(PlanRow(key, 0, len(PROMPT), PROMPT, (key,), True) for key in adapters)
    starts = tuple(
        SequenceStart(key, sampling, len(PROMPT), PROMPT, adapter=adapter)
        for key, adapter in adapters.items()
    )
    return StepPlan(step, Phase.PREFILL, rows, starts)


def run(executor: Executor, plan: StepPlan) -> SampledTokens:
    sampled = executor.execute(plan, None).sampled
    assert sampled is not None
    return sampled


@pytest.mark.parametrize(
    ("kind", "native", "quantization"),
    [("own", "1", None), ("own", "1", "int8"), ("own", "0", None), ("library", "1", None)],
)
def test_who_has_it_ends_alone(
    kind: str, native: str, quantization: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEPIPE_NATIVE", native)
    base, adapter = made(kind, tmp_path)
    backend = TorchBackend(
        str(base),
        device="cpu",
        dtype="float32",
        quantization=quantization,
        make_sampler=Sampler,
        adapters=(AdapterPlace("broken", adapter),),
    )
    broken = backend.description.adapters[0].fingerprint
    layers = backend.description.shape.layers
    executor = backend.configure(StageSpec(0, 1, 0, layers, 16, 16, 64))

    alone = [*run(executor, prefill(1, {1: ""})).token_ids]
    decode = DecodeRows((1,), (len(PROMPT),), (alone[0],))
    alone += run(executor, StepPlan(2, Phase.DECODE, (), decode=decode)).token_ids

    beside = run(executor, prefill(3, {2: broken, 3: "", 4: broken}))
    assert {one.key for one in beside.errors} == {2, 4}
    assert all("outputs are not numbers" in one.detail and one.fault is None for one in beside.errors)
    decode = DecodeRows((2, 3), (len(PROMPT),) * 2, (0, beside.token_ids[1]))
    further = run(executor, StepPlan(4, Phase.DECODE, (), decode=decode))
    assert [beside.token_ids[1], further.token_ids[1]] == alone

    # A step that has no others; and who wants something of the prompt itself.
    for step, wish in enumerate(({"prompt_logprobs": 1}, {"pooling": Pooling.MEAN}), 5):
        keys = (2 * step, 2 * step + 1)
        wishing = SamplingParams(temperature=0.0, **wish)  # type: ignore[arg-type]
        only = run(executor, prefill(step, dict.fromkeys((keys[0] % 16, keys[1] % 16), broken), wishing))
        assert {one.key for one in only.errors} == {key % 16 for key in keys}
        assert not only.prompts
