"""All layers in one call of the kernels: the same numbers as kernel by kernel, with any number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stage_worker.models.native_stack import NativeStack
from tests.tiny_models import FAMILIES, make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline

PROMPTS = random_prompts([1, 7, 160, 33])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_threads_and_single_kernels_agree(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(family, tmp_path)
    calls = []
    forward = NativeStack.forward
    monkeypatch.setattr(NativeStack, "forward", lambda *args: calls.append(0) or forward(*args))
    answers = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            answers.append(generate(make_pipeline(folder, 2, dtype=dtype), PROMPTS, 12, stagger=1))
    finally:
        torch.set_num_threads(threads)
    if not calls:
        pytest.skip("no kernels here")
    monkeypatch.setattr(NativeStack, "fits", staticmethod(lambda weights: False))
    calls.clear()
    answers.append(generate(make_pipeline(folder, 2, dtype=dtype), PROMPTS, 12, stagger=1))
    assert not calls
    assert answers[0] == answers[1] == answers[2]
