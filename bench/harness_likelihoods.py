"""Log-likelihoods as lm-evaluation-harness asks for them, beside Hugging Face's.

    pip install 'lm_eval[api]'
    python -m bench.harness_likelihoods --model smollm2-135m -o out

The harness's own client of OpenAI-compatible servers (`local-completions`) asks a cluster of float32 stages
for the log-likelihoods of continuations, several at a time; transformers computes the same from the same
tokens. With --endpoint a running server is asked instead. What is printed last is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe_common.model_source import resolve_model

_TEXTS = Path(__file__).parents[1] / "docs"
_SHORTEST, _LONGEST = 80, 300


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. difference: the largest of |ours - Hugging Face's|; of_token: the largest of a
    continuation's divided by its tokens.

    to_double: the largest to Hugging Face's float32 logits, made log-probabilities in double precision;
    its_own: of Hugging Face's log-probabilities to these. PyTorch's log_softmax of float32 leans to one side.
    greedy_differs: items of which only one of both says that the continuation is the most likely one.
    """

    items: int
    tokens: int
    greedy: int
    greedy_differs: int
    difference: float
    to_double: float
    its_own: float
    of_token: float
    mean: float


def contexts_and_continuations(count: int) -> list[tuple[str, str]]:
    """Paragraphs of TidePipe's documentation, cut in the middle of a word or between two."""
    paragraphs = [
        re.sub(r"\s+", " ", paragraph).strip()[:_LONGEST]
        for path in sorted(_TEXTS.glob("guide/*.md"))
        for paragraph in path.read_text().split("\n\n")
    ]
    chosen = [text for text in paragraphs if len(text) >= _SHORTEST and not text.startswith(("|", "```"))]
    if len(chosen) < count:
        raise SystemExit(f"there are {len(chosen)} paragraphs only")
    pairs = []
    for number, text in enumerate(chosen[:: len(chosen) // count][:count]):
        cut = len(text) * (2 + number % 3) // 5
        if number % 2:
            cut = text.rfind(" ", 0, cut)
        pairs.append((text[:cut], text[cut:]))
    return pairs


def of_harness(
    address: str, name: str, model: Path, pairs: Sequence[tuple[str, str]], batch: int
) -> tuple[list[tuple[float, bool]], list[tuple[list[int], list[int]]]]:
    """What lm-evaluation-harness makes of the server's answers, and the tokens that it asked for."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    except ImportError as error:
        raise SystemExit(f"this needs lm-evaluation-harness: pip install 'lm_eval[api]' ({error})") from None
    harness: Any = LocalCompletionsAPI(
        model=name,
        base_url=f"http://{address}/v1/completions",
        tokenizer=str(model),
        tokenizer_backend="huggingface",
        batch_size=batch,
        max_length=4096,
    )
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = harness.loglikelihood(asked, disable_tqdm=True)
    tokens = [harness._encode_pair(*pair) for pair in pairs]
    return [(float(value), bool(greedy)) for value, greedy in found], tokens


@torch.inference_mode()
def of_hugging_face(
    model: Path, tokens: Sequence[tuple[list[int], list[int]]]
) -> list[tuple[float, bool, float]]:
    """The same by transformers, in float32, one text after the other; and from the same logits in double."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for context, continuation in tokens:
        logits = network(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        chosen = torch.tensor(continuation).unsqueeze(1)
        likely = logits.log_softmax(-1).gather(1, chosen)
        greedy = bool((logits.argmax(-1) == chosen.squeeze(1)).all())
        exact = logits.double().log_softmax(-1).gather(1, chosen)
        found.append((float(likely.sum()), greedy, float(exact.sum())))
    return found


@contextlib.asynccontextmanager
async def server(model: str, endpoint: str, stages: int) -> AsyncIterator[str]:
    """Where to ask: the endpoint, or a cluster that lives as long as it is used."""
    if endpoint:
        yield endpoint
        return
    config = ClusterConfig(model=model, stages=stages, dtype="float32", log_level="error")
    async with LocalCluster(config) as cluster:
        yield cluster.http_address


async def compare(arguments: argparse.Namespace) -> Report:
    """Ask both."""
    model = resolve_model(arguments.model)
    pairs = contexts_and_continuations(arguments.items)
    async with server(arguments.model, arguments.endpoint, arguments.stages) as address:
        name = Path(arguments.model).name
        ours, tokens = await asyncio.to_thread(of_harness, address, name, model, pairs, arguments.batch)
    theirs = of_hugging_face(model, tokens)
    differences = [abs(mine - its) for (mine, _), (its, _, _) in zip(ours, theirs, strict=True)]
    to_double = [abs(mine - exact) for (mine, _), (_, _, exact) in zip(ours, theirs, strict=True)]
    return Report(
        items=len(pairs),
        tokens=sum(len(continuation) for _, continuation in tokens),
        greedy=sum(greedy for _, greedy, _ in theirs),
        greedy_differs=sum(mine[1] != its[1] for mine, its in zip(ours, theirs, strict=True)),
        difference=max(differences),
        to_double=max(to_double),
        its_own=max(abs(its - exact) for its, _, exact in theirs),
        of_token=max(one / len(more) for one, (_, more) in zip(differences, tokens, strict=True)),
        mean=sum(value for value, _, _ in theirs) / len(theirs),
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--endpoint", default="", metavar="HOST:PORT", help="of a running server's HTTP")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="prompts of one request")
    parser.add_argument("-o", "--output", type=Path, help="folder for the report")
    arguments = parser.parse_args()
    report = asdict(asyncio.run(compare(arguments)))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "harness-likelihoods.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
