"""Prefix reuse as clients meet it: answers are as before, usage says what was saved, keys are kept apart."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.tiny_models import make_tiny_model
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.security.authority import CA_FILE
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.key_store import KeyStore

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

BLOCK = 16
PROMPT = "The tide comes in and the tide goes out, as it did a hundred years ago. "
FOUND = (len(PROMPT) - 1) // BLOCK * BLOCK
"""A byte is a token here, and the last one is always computed."""


@dataclass
class Cluster:
    """One that asks for keys, on two stages, with a tiny model in float32."""

    http: str
    grpc: str
    ca: Path
    keys: dict[str, str]

    def client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://{self.http}/v1",
            verify=ssl.create_default_context(cafile=str(self.ca)),
            headers={"authorization": f"Bearer {self.keys[key]}"},
            timeout=30,
            trust_env=False,
        )

    def sdk(self, key: str) -> AsyncClient:
        return AsyncClient(self.grpc, credentials=Credentials(ca_file=self.ca, api_key=self.keys[key]))

    async def admin(self, *arguments: str) -> dict[str, Any]:
        """What `tidepipe admin cache --json` says, asked with an admin's key."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidepipe.cli.main", "admin", "cache", "--json"),
            *("--endpoint", self.grpc, "--tls-ca", str(self.ca), *arguments),
            env={**os.environ, "TIDEPIPE_API_KEY": self.keys["admin"]},
            stdout=subprocess.PIPE,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        (instance,) = json.loads(said)["instances"]
        return dict(instance)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cluster]:
    folder = tmp_path_factory.mktemp("reuse")
    make_tokenizer(make_tiny_model("llama", folder / "model"))
    store = KeyStore(folder / "keys.db")
    roles = {"alice": "inference", "bob": "inference", "admin": "admin"}
    keys = {name: store.add(name, [role])[1] for name, role in roles.items()}
    config = ClusterConfig(
        model=str(folder / "model"),
        stages=2,
        dtype="float32",
        threads=1,
        block_size=BLOCK,
        kv_blocks=256,
        tls="auto",
        api_keys=folder / "keys.db",
        run_dir=str(folder / "run"),
    )
    async with LocalCluster(config) as running:
        assert running.tls_folder is not None
        ca = running.tls_folder / CA_FILE
        yield Cluster(running.http_address, running.grpc_address, ca, keys)


async def ask(http: httpx.AsyncClient, prompt: str = PROMPT, **body: Any) -> dict[str, Any]:
    wanted = {"prompt": prompt, "max_tokens": 4, "temperature": 0, **body}
    reply = await http.post("/completions", json=wanted)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_keys_and_salts_are_kept_apart(cluster: Cluster) -> None:
    """What one has asked makes nothing quicker for another, by any door; clearing forgets it."""
    async with cluster.client("alice") as alice, cluster.client("bob") as bob:
        assert [cached(await ask(alice)) for _ in range(2)] == [0, FOUND]
        assert [cached(await ask(bob)) for _ in range(2)] == [0, FOUND]
        assert [cached(await ask(alice, cache_salt="s")) for _ in range(2)] == [0, FOUND]
        assert cached(await ask(alice, cache_salt="t")) == 0
        assert cached(await ask(bob, cache_salt="s")) == 0
        for wrong in ("", "s" * 257, "ä" * 129, 5):
            reply = await alice.post("/completions", json={"prompt": "x", "cache_salt": wrong})
            assert reply.status_code == 400 and "cache_salt" in reply.text
        async with cluster.sdk("alice") as hers, cluster.sdk("bob") as his:
            options: Any = {"temperature": 0, "max_tokens": 4}
            assert (await hers.generate(PROMPT, **options)).usage.cached_tokens == FOUND
            assert (await hers.generate(PROMPT, cache_salt="u", **options)).usage.cached_tokens == 0
            assert (await his.generate(PROMPT, cache_salt="u", **options)).usage.cached_tokens == 0
            assert (await his.generate(PROMPT, cache_salt="u", **options)).usage.cached_tokens == FOUND
        before = await cluster.admin("--clear")
        assert before["cleared_blocks"] >= 6 * FOUND // BLOCK
        after = await cluster.admin()
        assert after["prefix_caching"] and after["blocks"]["findable"] == after["blocks"]["kept"] == 0
        assert 0 < after["hit_rate"] < 1 and after["evicted_blocks"] == 0
        assert [cached(await ask(alice)) for _ in range(2)] == [0, FOUND]


async def test_answers_are_the_same_with_a_computed_beginning(cluster: Cluster) -> None:
    """Structures, log-probabilities, penalties, seeds, n: computed whole, and behind what was found."""
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 24, "ignore_eos": True},
        {"structured_outputs": {"regex": "[a-c]{5}-[0-9]{3}"}, "max_tokens": 24},
        {"logprobs": 5, "max_tokens": 8, "ignore_eos": True},
        {
            "temperature": 0.9,
            "seed": 3,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "max_tokens": 16,
        },
        {"temperature": 1.0, "seed": 7, "n": 3, "max_tokens": 12, "ignore_eos": True},
    ]
    async with cluster.client("alice") as alice:
        for number, kind in enumerate(kinds):
            body = {**kind, "return_token_ids": True, "cache_salt": f"kind {number}"}
            first, *again = [await ask(alice, **body) for _ in range(3)]
            # Of n answers the first one computes the prompt, so the request has found nothing.
            assert [cached(one) for one in (first, *again)] == [0, FOUND, FOUND]
            for one in again:
                for choice, other in zip(first["choices"], one["choices"], strict=True):
                    logprobs, others = choice.pop("logprobs"), other["logprobs"]
                    assert choice == {name: value for name, value in other.items() if name != "logprobs"}
                    if logprobs is not None:
                        assert others["token_logprobs"] == pytest.approx(logprobs["token_logprobs"], abs=1e-3)
                    choice["logprobs"] = logprobs


async def test_streams_say_it_in_the_end(cluster: Cluster) -> None:
    body = {
        "prompt": PROMPT,
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "cache_salt": "stream",
    }
    async with cluster.client("alice") as alice:
        usages = []
        for _ in range(2):
            reply = await alice.post("/completions", json=body)
            chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
            assert all("prompt_tokens_details" not in chunk["usage"] for chunk in chunks[:-1])
            usages.append(chunks[-1]["usage"])
    assert [one["prompt_tokens_details"] for one in usages] == [{"cached_tokens": n} for n in (0, FOUND)]
