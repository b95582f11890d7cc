"""Are answers the library's own, whatever the architecture? Real clusters of tiny random models.

    python -m bench.architectures -o out.jsonl [NAME ..]
    python -m bench.architectures --page out.jsonl

Each row is an architecture and a cluster of one to three stages, in turn: requests whose prompts begin alike,
all at once, in float32, in so few KV blocks that some are preempted; when a quarter of all tokens has come,
the last stage is killed. Greedy answers are compared token for token with those of transformers' `generate`.
Rows that the file has are not made again. The second form writes them to docs/results/architectures.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from stage_worker.transformers_code import trial
from stage_worker.transformers_code.survey import usual_configs
from stage_worker.transformers_code.tiny import tiny_config
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.async_stream import AsyncStream
from tidepipe_common.errors import TidePipeError
from tidepipe_common.types.sampling import SamplingParams

NAMES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "olmoe",
    "granitemoe",
    "deepseek_v2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "phi",
    "phi3",
    "phimoe",
    "gpt2",
    "gpt_neox",
    "gpt_bigcode",
    "starcoder2",
    "olmo",
    "olmo2",
    "olmo3",
    "cohere",
    "cohere2",
    "glm",
    "glm4",
    "glm4_moe",
    "stablelm",
    "opt",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "helium",
    "nemotron",
    "arcee",
    "apertus",
    "seed_oss",
    "minimax_m2",
    "hunyuan_v1_dense",
    "gptj",
    "llama4_text",
    "bloom",
    "falcon",
    "mpt",
    "gemma4_text",
    "gemma3n_text",
    "dbrx",
    "dots1",
    "smollm3",
    "qwen3",
]
REQUESTS, TOKENS, KV_BLOCKS = 16, 64, 48
KILL_AFTER_TOKENS = REQUESTS * TOKENS // 4
_LARGEST_TOKEN = 250
PAGE = Path(__file__).parents[1] / "docs" / "results" / "architectures.md"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one cluster. equal: of the answers.

    killed: stage that was. cut: answers that had begun and not ended when it was. epochs: how often the
    stages were configured; 2: once more after the kill.
    """

    architecture: str
    stages: int
    answers: int
    equal: int
    preemptions: int
    cached_tokens: int
    killed: int
    cut: int
    epochs: int
    seconds: float
    date: str


def prompts() -> list[list[int]]:
    """Some begin alike."""
    chance = np.random.default_rng(7)
    shared = chance.integers(2, _LARGEST_TOKEN, 50).tolist()
    return [
        [*(shared if number % 2 else []), *chance.integers(2, _LARGEST_TOKEN, 5 + 3 * number).tolist()]
        for number in range(REQUESTS)
    ]


def write_model(name: str, folder: Path) -> Any:
    """A tiny random model of an architecture with a tokenizer; the library's own model of it."""
    usual = next(usual_configs(name))
    config = tiny_config(usual.to_dict(), usual.model_type)
    model = trial.reference(config, 1)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return model


def expected(model: Any, asked: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the library generates."""
    rows = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        done = model.generate(
            ids,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        rows.append(done[0, len(prompt) :].tolist())
    return rows


class Killer:
    """Kills a stage when so many tokens have come."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._tokens = 0
        self.cut = 0

    def came(self, answer: int, tokens: int, last: bool) -> None:
        """Tokens of an answer."""
        self._begun.add(answer)
        if last:
            self._done.add(answer)
        before, self._tokens = self._tokens, self._tokens + tokens
        if before < KILL_AFTER_TOKENS <= self._tokens:
            os.kill(self._pid, signal.SIGKILL)
            self.cut = len(self._begun - self._done)


async def answers(
    model: Path, stages: int, asked: Sequence[Sequence[int]]
) -> tuple[list[list[int]], dict[str, int]]:
    """All answers, and what the instance says of itself, with what the kill cut."""
    config = ClusterConfig(
        model=str(model),
        stages=stages,
        dtype="float32",
        model_code="transformers",
        kv_blocks=KV_BLOCKS,
        reserve=-1.0,  # more is let in than fits
        threads=1,
        log_level="error",
    )
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=150) as client:
        before = (await client.status()).instances[0].status
        assert before is not None
        killer = Killer(before.stages[-1].pid)
        streams = [client.stream(list(prompt), greedy, skip_text=True) for prompt in asked]
        whole = [_answer(stream, number, killer) for number, stream in enumerate(streams)]
        answered = await asyncio.gather(*whole)
        after = (await client.status()).instances[0].status
        assert after is not None
    said = {
        "preemptions": after.preemptions,
        "cached_tokens": sum(cached for _, cached in answered),
        "killed": stages - 1,
        "cut": killer.cut,
        "epochs": after.epoch - before.epoch + 1,
    }
    return [tokens for tokens, _ in answered], said


async def _answer(stream: AsyncStream, number: int, killer: Killer) -> tuple[list[int], int]:
    """Its tokens, as far as they came, and how many of its prompt were not computed."""
    tokens: list[int] = []
    cached = 0
    try:
        async with stream:
            async for event in stream:
                tokens.extend(event.token_ids)
                if event.usage is not None:
                    cached = event.usage.cached_tokens
                killer.came(number, len(event.token_ids), event.finish_reason is not None)
    except TidePipeError as error:
        print(f"answer {number}: {error}", file=sys.stderr)
    return tokens, cached


def page(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    kinds = len({row.architecture for row in rows})
    dates = sorted({row.date for row in rows})
    equal = sum(row.equal == row.answers for row in rows)
    lines = [
        "# Architectures by the library's code, live",
        "",
        "<!-- Made by `python -m bench.architectures --page out.jsonl`; do not edit. -->",
        "",
        f"Real clusters of tiny random models, {kinds} architectures in {len(rows)} clusters, measured "
        f"{' and '.join(dates)} on two cores: in {equal} of them all answers",
        f"are those of transformers' `generate`, token for token. Each: {REQUESTS} requests all in flight "
        f"together, {TOKENS} tokens each, float32, greedy; every",
        f"second prompt begins with the same 50 tokens; {KV_BLOCKS} KV blocks of 16 tokens, too few for all, "
        "so that sequences are preempted; when a quarter",
        "of all tokens has come, the last stage is killed with SIGKILL. One to three stages in turn, or all.",
        "",
        "```",
        "python -m bench.architectures -o out.jsonl          # resumes; names of architectures for some only",
        "```",
        "",
        "| architecture | stages | answers equal | preemptions | tokens of prompts not computed again | "
        "answers cut by the kill | configured |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.architecture} | {row.stages} | {row.equal} of {row.answers} | {row.preemptions} | "
        f"{row.cached_tokens} | {row.cut} | {row.epochs} times |"
        for row in sorted(rows, key=lambda one: (one.architecture, one.stages))
    ]
    return "\n".join(lines) + "\n"


def rows_of(file: Path) -> list[Row]:
    """What was found so far."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [Row(**json.loads(line)) for line in lines]


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--each", action="store_true", help="all numbers of stages for each, not in turn")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after so long")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path)
    what.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page is not None:
        PAGE.write_text(page(rows_of(options.page)))
        return
    end = time.monotonic() + options.seconds
    done = {(row.architecture, row.stages) for row in rows_of(options.output)}
    turns = itertools.cycle(options.stages)
    for name in options.names:
        counts = options.stages if options.each else [next(turns)]
        counts = [stages for stages in counts if (name, stages) not in done]
        if not counts or time.monotonic() > end:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            torch.set_num_threads(1)
            asked = prompts()
            wanted = expected(write_model(name, folder), asked)
            for stages in counts:
                began = time.monotonic()
                got, said = asyncio.run(answers(folder, stages, asked))
                row = Row(
                    name,
                    stages,
                    len(got),
                    sum(mine == theirs for mine, theirs in zip(got, wanted, strict=True)),
                    seconds=round(time.monotonic() - began, 1),
                    date=datetime.date.today().isoformat(),
                    **said,
                )
                print(json.dumps(asdict(row)), flush=True)
                with options.output.open("a") as out:
                    out.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
