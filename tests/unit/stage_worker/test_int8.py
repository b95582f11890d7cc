"""Dynamic W8A8: exact integer sums, the same answers whatever the batch and the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stage_worker.executors.torch_backend import TorchBackend
from stage_worker.models.native.build import VARIANTS, Variant
from stage_worker.models.native_int8 import Int8Linear
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tests.unit.stage_worker.test_models_native import kernels, random
from tidepipe_common.errors import ConfigError

DTYPES = [torch.float32, torch.bfloat16]


def whole(rows: int, columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Numbers that int8 holds exactly, with scale 1/4."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-127, 128, (rows, columns), generator=generator)
    numbers[:, 0] = 127
    return (numbers / 4).to(dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype: torch.dtype, variant: Variant) -> None:
    used = kernels(dtype, variant)
    for outputs, inputs in ((64, 32), (5, 4), (100, 700), (70, 1536)):
        weight, bias = whole(outputs, inputs, dtype, 0), random(outputs, dtype=dtype, seed=1)
        linear = Int8Linear(used, weight, bias, float_out=True)
        assert torch.equal(linear.rows(torch.tensor([0, outputs - 1])), weight[[0, outputs - 1]])
        for rows in (1, 2, 3, 4, 5, 6, 13, 200):
            x = whole(rows, inputs, dtype, rows)
            expected = x.double() @ weight.double().T + bias.double()
            torch.testing.assert_close(linear(x).double(), expected, rtol=1e-6, atol=1e-4)


def test_rounding_costs_little() -> None:
    weight, x = random(64, 576, dtype=torch.bfloat16), random(20, 576, dtype=torch.bfloat16, seed=1)
    exact = x.double() @ weight.double().T
    error = Int8Linear(kernels(torch.bfloat16), weight, None, float_out=True)(x).double() - exact
    assert error.norm() < 0.02 * exact.norm()


def test_a_row_s_product_does_not_depend_on_the_others() -> None:
    linear = Int8Linear(kernels(torch.bfloat16), random(130, 1000, dtype=torch.bfloat16), None)
    x = random(300, 1000, dtype=torch.bfloat16, seed=1)
    together = linear(x)
    for begin, end in ((0, 1), (7, 9), (299, 300)):
        assert torch.equal(linear(x[begin:end]), together[begin:end])


def test_zeros_and_numbers_that_are_none() -> None:
    linear = Int8Linear(kernels(torch.float32), random(64, 32, dtype=torch.float32), None)
    x = random(3, 32, dtype=torch.float32)
    x[0] = 0
    x[1, 5] = torch.inf
    out = linear(x)
    assert torch.equal(out[0], torch.zeros(64))
    assert out[1].isnan().all()
    assert out[2].isfinite().all()


def test_answers_do_not_depend_on_stages_and_threads(tmp_path: Path) -> None:
    kernels(torch.bfloat16)
    folder = make_tiny_model("llama", tmp_path)
    prompts = random_prompts([1, 7, 160, 33])
    alone = [
        generate(make_pipeline(folder, 1, quantization="int8"), [prompt], 12, chunk=9)[0]
        for prompt in prompts
    ]
    assert generate(make_pipeline(folder, 3, quantization="int8"), prompts, 12, stagger=1) == alone


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    with pytest.raises(ConfigError, match="must be int8, got 'int3'"):
        TorchBackend(str(folder), device="cpu", quantization="int3")
    with pytest.raises(ConfigError, match="needs a CPU, float32 or bfloat16, and TidePipe's kernels"):
        TorchBackend(str(folder), device="cpu", dtype="float16", quantization="int8")
