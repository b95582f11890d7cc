"""The C kernels' products and row operations against PyTorch, and how the kernels come to be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stage_worker.models.layer_ops import TorchLayerOps
from stage_worker.models.native import build, library
from stage_worker.models.native.build import VARIANTS, BuildError, Source, Variant, compiled, usable_variants
from stage_worker.models.native.library import NativeKernels, load_kernels
from stage_worker.models.native_ops import NativeLayerOps, NativeLinear

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def kernels(dtype: torch.dtype, variant: Variant | None = None, threads: int = 1) -> NativeKernels:
    usable = usable_variants(bfloat16=dtype == torch.bfloat16)
    if variant is not None and variant not in usable:
        pytest.skip(f"this CPU has no {variant.name}, or not for {dtype}")
    try:
        return NativeKernels(variant or usable[0], dtype, threads)
    except BuildError as error:
        pytest.skip(str(error))


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype: torch.dtype, variant: Variant) -> None:
    used = kernels(dtype, variant)
    for outputs, inputs in ((64, 32), (5, 6), (100, 700), (192, 64)):
        weight, bias = random(outputs, inputs, dtype=dtype), random(outputs, dtype=dtype, seed=1)
        for rows in (1, 2, 3, 4, 5, 6, 7, 13, 30, 200):
            x = random(rows, inputs, dtype=dtype, seed=rows)
            expected = x.double() @ weight.double().T
            plain = NativeLinear(used, weight.clone(), None)(x)
            assert plain.dtype == dtype
            tolerance = TOLERANCE[dtype] * inputs**0.5
            torch.testing.assert_close(plain.double(), expected, rtol=TOLERANCE[dtype], atol=tolerance)
            wide = NativeLinear(used, weight.clone(), bias, float_out=True)(x)
            assert wide.dtype == torch.float32
            torch.testing.assert_close(wide.double(), expected + bias.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_s_product_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    linear = NativeLinear(kernels(dtype), random(130, 1000, dtype=dtype), None)
    x = random(300, 1000, dtype=dtype, seed=1)
    together = linear(x)
    for begin, end in ((0, 1), (7, 9), (20, 53), (299, 300)):
        assert torch.equal(linear(x[begin:end]), together[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_given_buffers(dtype: torch.dtype) -> None:
    weight, x = random(500, 64, dtype=dtype), random(40, 64, dtype=dtype, seed=1)
    buffer = torch.empty(40, 500, dtype=dtype)
    assert NativeLinear(kernels(dtype, threads=3), weight.clone(), None)(x, buffer) is buffer
    assert torch.equal(buffer, NativeLinear(kernels(dtype), weight.clone(), None)(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_rows_are_found_again(dtype: torch.dtype) -> None:
    weight = random(150, 32, dtype=dtype)
    ids = torch.tensor([0, 149, 63, 64, 64])
    assert torch.equal(NativeLinear(kernels(dtype), weight.clone(), None).rows(ids), weight[ids])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_operations(dtype: torch.dtype, variant: Variant) -> None:
    native, reference = NativeLayerOps(kernels(dtype, variant)), TorchLayerOps()
    for rows, columns in ((1, 16), (3, 37), (40, 576)):
        x, delta = random(rows, columns, dtype=dtype), random(rows, columns, dtype=dtype, seed=1)
        weight = random(columns, dtype=dtype, seed=2)
        same, other = x.clone(), x.clone()
        close(native.rms_norm(same, weight, 1e-5), reference.rms_norm(other, weight, 1e-5))
        close(
            native.add_rms_norm(same, delta, weight, 1e-5), reference.add_rms_norm(other, delta, weight, 1e-5)
        )
        assert torch.equal(same, other)
        gate_up = random(rows, 2 * columns, dtype=dtype, seed=3) * 8
        close(native.swiglu(gate_up), reference.swiglu(gate_up))


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=TOLERANCE[left.dtype], atol=TOLERANCE[left.dtype])


def test_extreme_gates() -> None:
    gate_up = torch.tensor([[-1e30, -100.0, -0.0, 100.0, 1e30, torch.nan] + [1.0] * 6])
    out = NativeLayerOps(kernels(torch.float32)).swiglu(gate_up)
    torch.testing.assert_close(out[:, :5], torch.tensor([[0.0, 0.0, 0.0, 100.0, 1e30]]))
    assert out[0, 5].isnan()


def test_numbers_that_are_none_stay_so() -> None:
    ops = NativeLayerOps(kernels(torch.bfloat16))
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    assert ops.rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5).isnan().all()


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(library, "_warn_once", warnings.append)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path))
    assert load_kernels(torch.float32, 1) is None
    assert "no-such-compiler" in warnings[0]
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho 'x.c: error: broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert load_kernels(torch.float32, 1) is None
    assert "broken" in warnings[1]
    assert not list(tmp_path.glob("native/*.so"))


def test_switch_and_other_data_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_kernels(torch.float16, 1) is None
    monkeypatch.setenv("TIDEPIPE_NATIVE", "0")
    assert load_kernels(torch.float32, 1) is None


QUICK = ("-O0", *build._FLAGS[1:])
"""For where kernels are only put, and not used."""


def test_processes_that_start_at_once_share_one_build(tmp_path: Path) -> None:
    kernels(torch.float32)
    program = (
        "from stage_worker.models.native import build\n"
        f"build._FLAGS = {QUICK}\n"
        "print(build.compiled(build.VARIANTS[-1], bfloat16=False))"
    )
    environment = {**os.environ, "TIDEPIPE_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    printed = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(printed) == 1
    assert len(list(tmp_path.glob("native/*.so"))) == 1
    # A second call finds it.
    before = next(tmp_path.glob("native/*.so")).stat().st_mtime_ns
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert next(tmp_path.glob("native/*.so")).stat().st_mtime_ns == before


def test_unwritable_cache_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "native").touch()
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path))
    with pytest.raises(BuildError, match=r"cache folder cannot be written|no C compiler"):
        compiled(VARIANTS[-1], bfloat16=False)


def test_code_that_others_could_have_written_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels(torch.float32)
    monkeypatch.setattr(build, "_FLAGS", QUICK)
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path / "cache"))

    def path() -> Path:
        return Path(os.fsdecode(compiled(VARIANTS[-1], bfloat16=False)))

    made = path()
    original = made.read_bytes()

    def planted() -> bool:
        return made.read_bytes() != original

    folder = made.parent
    folder.chmod(0o777)
    made.write_bytes(b"planted")
    made.chmod(0o777)
    assert path() == made and not planted(), "a file that others could write is compiled anew"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "and the folder is closed to them"
    made.rename(folder / "elsewhere")
    made.symlink_to(folder / "elsewhere")
    path()
    assert not made.is_symlink()
    if os.getuid() == 0:
        made.write_bytes(b"planted")
        os.chown(made, 4242, 4242)
        assert path() == made and not planted(), "nor is a stranger's loaded"
        os.chown(folder, 4242, 4242)
        with pytest.raises(BuildError, match="belongs to"):
            path()
        os.chown(folder, 0, 0)
    monkeypatch.setenv("TIDEPIPE_KERNELS", str(tmp_path / "given"))
    (tmp_path / "given").mkdir(mode=0o777)
    (tmp_path / "given").chmod(0o777)
    prebuilt = tmp_path / "given" / Source.of(VARIANTS[-1], bfloat16=False).file_name()
    prebuilt.write_bytes(original)
    with pytest.raises(BuildError, match="not safe"):
        path()
    (tmp_path / "given").chmod(0o755)
    assert path() == prebuilt
