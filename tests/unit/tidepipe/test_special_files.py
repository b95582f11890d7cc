"""A pipe where a command reads a file is refused in one sentence, before anybody waits for its writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.runtime.journal import read_scheduler_spec
from launcher.config import load_config
from predictor.training.dataset import read_answers
from stage_worker.loading.gguf_header import read_gguf_header
from stage_worker.loading.safetensors_folder import read_header
from tidepipe.batch.input_file import count_lines
from tidepipe.batch.throughput import read_workload
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.profile_file import read_profile
from tidepipe_common.model_files import read_json_object
from tidepipe_common.security.credentials import expiry
from workloads.files import open_workload

READERS: dict[str, Callable[[Path], object]] = {
    "workload": lambda path: open_workload(str(path), None, 1),
    "workload of prompts": read_workload,
    "profile": read_profile,
    "shape": lambda path: read_shape(str(path)),
    "batch": count_lines,
    "answers": read_answers,
    "journal": read_scheduler_spec,
    "configuration": lambda path: load_config(path, {}),
    "JSON of a model": read_json_object,
    "safetensors": read_header,
    "gguf": read_gguf_header,
    "certificate": expiry,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises((ConfigError, ModelError), match=r"it is no regular file") as caught:
        READERS[kind](pipe)
    assert str(pipe) in str(caught.value) and len(str(caught.value).splitlines()) == 1
