"""The router as a process: starts, says why it cannot, ends when told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.service_process import started
from launcher.ports import choose_port
from tests.fakes.controller import fake_controller, scripted_text
from tidepipe_common.rpc.channel import is_serving, open_channel, wait_serving
from tidepipe_common.rpc.lifecycle import EXIT_WRONG_SETTINGS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as far as the router looks at it: bytes are tokens, printable ones in their place."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda spelled: (ord(spelled) > 126, spelled))
    ids = {spelled: ord(spelled) if ord(spelled) <= 126 else None for spelled in alphabet}
    free = iter(sorted(set(range(256)) - {token for token in ids.values() if token is not None}))
    vocabulary = {spelled: token if token is not None else next(free) for spelled, token in ids.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


async def test_it_serves_and_ends(model: Path) -> None:
    http = f"127.0.0.1:{choose_port('127.0.0.1', 0)}"
    arguments = ["--listen", "127.0.0.1:0", "--model", str(model), "--http", http]
    with started("router", *arguments) as (process, announced):
        address = announced["ready"]
        async with (
            fake_controller(model=model.name) as controller,
            open_channel(address) as channel,
            httpx.AsyncClient(base_url=f"http://{http}", trust_env=False) as client,
        ):
            assert (await client.get("/health")).status_code == 200
            assert not await is_serving(channel), "it has no instance yet"
            await controller.register(address)
            await wait_serving(address, timeout=5)
            (entry,) = (await client.get("/v1/models")).json()["data"]
            assert entry["id"] == model.name
            body = {"prompt": "tell_me", "max_tokens": 20, "temperature": 0, "model": model.name}
            answer = (await client.post("/v1/completions", json=body)).json()
            assert answer["choices"][0]["text"] == scripted_text(list(b"tell_me"), 20)

            # Another one on the same HTTP port does not come up, and says so.
            with started("router", *arguments) as (other, failed):
                assert http in failed["failed"] and other.wait(10) == EXIT_WRONG_SETTINGS
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_an_unknown_model_is_one_sentence() -> None:
    command = [sys.executable, "-m", "router", "--listen", "127.0.0.1:0", "--model", "/no/such/model"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == EXIT_WRONG_SETTINGS
    (sentence,) = result.stderr.splitlines()
    assert "/no/such/model: no such file or folder" in json.loads(sentence)["reason"]
