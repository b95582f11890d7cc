"""Safetensors folders: only what a stage needs is read, and whatever is wrong is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_worker.loading.checkpoint import Checkpoint
from stage_worker.loading.open_checkpoint import open_checkpoint
from stage_worker.loading.stage_weights import StageSlice, load_stage
from stage_worker.models.linear import PlainLinear
from stage_worker.models.weights import StageWeights
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import generate, make_pipeline
from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import read_json_object

PROMPTS = random_prompts([5, 20])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def load(folder: Path, begin: int = 0, end: int = 4) -> StageWeights:
    part = StageSlice(begin, end, first=begin == 0, last=end == 4)
    return load_stage(open_checkpoint(folder), part, torch.float32, CPU, PlainLinear, PlainLinear)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def shard(folder: Path) -> None:
    """Split model.safetensors in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_shards_give_the_same_tokens(model: Path, copy: Path) -> None:
    shard(copy)
    assert generate(make_pipeline(copy, 2), PROMPTS, 4) == generate(make_pipeline(model, 2), PROMPTS, 4)


def test_only_own_tensors_are_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Checkpoint.read_into

    def recording(self: Checkpoint, name: str, target: torch.Tensor) -> None:
        read.append(name)
        original(self, name, target)

    monkeypatch.setattr(Checkpoint, "read_into", recording)
    middle = load(model, 1, 3)
    assert read and all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in read)
    assert (middle.embedding, middle.final_norm, middle.head) == (None, None, None)
    read.clear()
    load(model, 0, 1)
    assert "model.embed_tokens.weight" in read and "lm_head.weight" not in read
    read.clear()
    load(model, 3, 4)
    assert {"model.norm.weight", "lm_head.weight"} <= set(read) and "model.embed_tokens.weight" not in read


def test_tied_embedding_is_read_by_both_ends_and_shared_by_one(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "tied")
    assert load(folder, 0, 2).embedding is not None
    assert load(folder, 2, 4).head is not None
    whole = load(folder)
    assert whole.embedding is whole.head
    assert whole.nbytes < load(folder, 0, 2).nbytes + load(folder, 2, 4).nbytes


def test_weights_are_converted(model: Path) -> None:
    part = StageSlice(0, 4, first=True, last=True)
    half = load_stage(open_checkpoint(model), part, torch.bfloat16, CPU, PlainLinear, PlainLinear)
    assert half.layers[0].input_norm.dtype == torch.bfloat16
    assert 2 * half.nbytes == load(model).nbytes


def test_missing_tensor(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    load(copy, 0, 2)
    with pytest.raises(ModelError, match=r"model: tensor model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        load(copy)


def test_wrong_shape(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(63)}))
    with pytest.raises(
        ModelError, match=r"model\.safetensors: tensor model\.norm\.weight has shape \[63\].*\[64\]"
    ):
        load(copy)


def test_wrong_type(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"tensor model\.norm\.weight of type I8 cannot be decoded"):
        load(copy)


def test_every_cut_is_a_model_error(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    for length in [0, 4, 8, 100, 3000, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors: .*cut short"):
            open_checkpoint(copy)


def test_tensors_over_one_another_are_refused(copy: Path) -> None:
    entries = {name: {"dtype": "F32", "shape": [8], "data_offsets": at} for name, at in OVER.items()}
    header = json.dumps(entries).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ModelError, match="the bytes of tensors b and a overlap"):
        open_checkpoint(copy)


OVER = {"a": [28, 60], "b": [0, 32]}


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [64], "data_offsets": [0, 128]},
        {"dtype": "F32", "shape": [-64], "data_offsets": [0, 256]},
        {"dtype": "F32", "shape": [64], "data_offsets": [256, 0]},
        {"dtype": "F32", "shape": [64]},
        {"dtype": "F32", "shape": "64", "data_offsets": [0]},
        [],
    ],
)
def test_damaged_header_entries(copy: Path, entry: object) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(256))
    with pytest.raises(ModelError, match=r"model\.safetensors: .*model\.norm\.weight"):
        open_checkpoint(copy)


def test_missing_shard_and_escaping_shard(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: is missing"):
        open_checkpoint(copy)
    for name in ("../model.safetensors", "a" * 5000 + ".safetensors", "\ud800.safetensors"):
        index = {"weight_map": {"model.norm.weight": name}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(
            ModelError, match=r"not the name of a safetensors file beside it|unpaired surrogate"
        ):
            open_checkpoint(copy)
    os.mkfifo(copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read .it is no regular file"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON: .* at character 1"),
        (b"", "is empty"),
        (b"[]", "must be a JSON object, not a list"),
        (b"\xff\xfe\x00", "not UTF-8: byte 0"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
        (b'{"a": 1, // comment\n "b": 2}', "not JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b'{"rope_theta": 1e999}', "not usable JSON: the number 1e999 is too large"),
        (b'{"rope_theta": Infinity}', "not JSON: Infinity is not a JSON number"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "not usable JSON: an object has the name 'vocab_size' twice"),
    ],
)
def test_configuration_that_is_no_json(content: bytes, message: str, copy: Path) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        open_checkpoint(copy)


def test_an_index_may_name_more_tensors_than_a_request_has_members(tmp_path: Path) -> None:
    """Experts of the largest models: ninety thousand tensors."""
    names = {
        f"model.layers.{layer}.mlp.experts.{expert}.w": "a" for layer in range(100) for expert in range(900)
    }
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": names}))
    assert read_json_object(file)["weight_map"] == names


def test_configuration_without_a_data_type_takes_the_weights_own(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "half", dtype="bfloat16")
    reconfigure(folder, dtype=None)
    assert open_checkpoint(folder).spec.native_dtype == "bfloat16"


def test_fingerprint(model: Path, copy: Path) -> None:
    fingerprint = open_checkpoint(model).fingerprint()
    assert fingerprint == open_checkpoint(copy).fingerprint()
    shard(copy)
    shutil.copy(model / "model.safetensors", copy)
    (copy / "model.safetensors.index.json").unlink()
    assert fingerprint == open_checkpoint(copy).fingerprint()
    rewrite(copy, lambda tensors: tensors["model.layers.1.self_attn.q_proj.weight"].mul_(1.01))
    tuned = open_checkpoint(copy).fingerprint()
    reconfigure(copy, rms_norm_eps=1e-5)
    assert len({fingerprint, tuned, open_checkpoint(copy).fingerprint()}) == 3
