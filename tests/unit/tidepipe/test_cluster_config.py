"""Settings of a local cluster are checked by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config import load_config
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.token_mix import TokenMix


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('model = "m"\nstages = 3\nlayer_split = "10,10,10"\n')
    defaults = {"stages": 2, "token_mix": "7:1"}
    config = load_config(file, {"model": "other", "stages": None}, defaults)
    assert (config.model, config.stages, config.layer_split) == ("other", 3, "10,10,10")
    assert config.token_mix == "7:1", "what neither says is the command's default"


@pytest.mark.parametrize("mix", [TokenMix(), TokenMix(7, 3, 1600)])
def test_a_mix_is_a_setting_as_it_is_written(mix: TokenMix) -> None:
    config = load_config(None, {"model": "m", "token_mix": str(mix)})
    assert TokenMix.parse(config.token_mix or "") == mix


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ('model = "m"\nhttp-port = 80', {}, "unknown setting 'http-port'; did you mean http_port"),
        ('model = "m"\nflavour = 2', {}, "unknown setting 'flavour'; known: model, stages"),
        ('model = "m"\nstages = "2"', {}, r"stages: must be a whole number in \[1, 64\], got '2'"),
        ("model = ", {}, "not valid TOML"),
        ("", {}, "no model given"),
        ("", {"model": "m", "stages": 0}, r"stages: must be a whole number in \[1, 64\], got 0"),
        ("", {"model": "m", "stages": 2, "layer_split": "1,2,3"}, "must (be|name) 2 numbers"),
        ("", {"model": "m", "token_mix": "2:0"}, "token_mix: .*'2:0'"),
        ("", {"model": "m", "executor": "magic"}, "executor: .*'torch' or 'emulated'"),
        ("", {"model": "m", "quantization": "int3"}, "quantization: .*'int8'"),
        ("", {"model": "m", "hardware": "l20"}, "hardware names the device"),
        ("", {"model": "m", "network_gbit": 10.0}, "is the link of --executor emulated"),
        ("", {"model": "m", "quantization": "int8", "device": "cuda"}, "int8 is for CPUs"),
        ("", {"model": "m", "fabric": "nccl", "device": "cpu"}, "nccl moves activations between cuda"),
        ("", {"model": "m", "lora": "poet"}, "lora: must be NAME=FOLDER"),
        ("", {"model": "m", "lora": "a=x,a=y"}, "lora: must not name a twice"),
        ("", {"model": "m", "lora": "m=x"}, "lora names an adapter m, as the model itself is called"),
        ("", {"model": "m", "lora": "a=x", "executor": "emulated"}, "lora is for --executor torch"),
        ("", {"model": "m", "lora": "a=x", "engine": "vllm"}, "lora is for TidePipe's own stage workers"),
        ("", {"model": "m", "lora": "a=x", "upstream": "http://h"}, "lora is of own stages"),
        ("", {"model": "m", "http_port": 7070, "grpc_port": 7070}, "are both 7070"),
        ("", {"model": "m", "instances": 2, "journal": "all.jsonl"}, "give a folder"),
        (
            "",
            {"model": "m", "routing": "roles", "instances": 2, "prefill_instances": 2},
            "leaves no instance that decodes",
        ),
        ("", {"model": "m", "routing": "taichi", "instances": 2}, "give --prefill-instances P and"),
        (
            "",
            {"model": "m", "policy": "magic"},
            "policy: .*'auto', 'td-pipe', 'separate', 'hybrid', .* or 'gllm'",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(
    tmp_path: Path, text: str, flags: dict[str, Any], message: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stages": 0}, r"--stages: must be a whole number in \[1, 64\], got 0"),
        ({"policy": "magic"}, "--policy: .*, got 'magic'"),
        ({"lora": "poet"}, "--lora: must be NAME=FOLDER, .*, got 'poet'"),
        ({"http_port": 7070, "grpc_port": 7070}, "--http-port and --grpc-port are both 7070"),
        ({"hardware": "l20"}, "--hardware names the device"),
    ],
)
def test_flags_are_called_as_they_are_typed(flags: dict[str, Any], message: str) -> None:
    """Where there is no file, which has names."""
    with pytest.raises(ConfigError, match=f"^{message}[^']*$"):
        load_config(None, {"model": "m", **flags})


def test_a_profile_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ConfigError, match=r"empty.csv: a latency profile needs two or more rows"):
        load_config(None, {"model": "m", "profile": str(tmp_path / "empty.csv")})
