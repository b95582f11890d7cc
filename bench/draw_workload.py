"""A workload file for `bench.peers`, `bench.engine`, `tidepipe bench`: random prompts of drawn lengths.

    python -m bench.draw_workload azure_conversation_trace.csv --seed 8 -o second.json
    python -m bench.draw_workload synthetic --prompts 700:1400 --outputs 16:48 --requests 40 -o long.json
    python -m bench.draw_workload synthetic --prompts 16:64 --outputs 200:400 -o short.json

SOURCE: lengths of a trace (Azure CSV, Mooncake JSONL, ..), of which those within the bounds are drawn from;
or `synthetic`: uniform between the bounds. Writes [{"prompt": [token ids], "out": n}, ...].
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from tidepipe_common.errors import TidePipeError
from workloads.files import open_workload


def bounds(text: str) -> tuple[int, int]:
    """LEAST:MOST, tokens."""
    least, _, most = text.partition(":")
    if not (least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
        raise argparse.ArgumentTypeError(f"must be LEAST:MOST in tokens, such as 16:1024, not {text!r}")
    return int(least), int(most)


def lengths(
    source: str, prompts: tuple[int, int], outputs: tuple[int, int], count: int, chance: random.Random
) -> list[tuple[int, int]]:
    """Prompt and output tokens of each request."""
    if source == "synthetic":
        return [(chance.randint(*prompts), chance.randint(*outputs)) for _ in range(count)]
    fitting = [
        (one.prompt_tokens, one.output_tokens)
        for one in open_workload(source, None, 0).requests
        if prompts[0] <= one.prompt_tokens <= prompts[1] and outputs[0] <= one.output_tokens <= outputs[1]
    ]
    if len(fitting) < count:
        raise TidePipeError(f"only {len(fitting)} requests of {source} are within the bounds; widen them")
    return chance.sample(fitting, count)


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--prompts", type=bounds, default=(16, 1024), metavar="LEAST:MOST")
    parser.add_argument("--outputs", type=bounds, default=(8, 512), metavar="LEAST:MOST")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    try:
        drawn = lengths(options.source, options.prompts, options.outputs, options.requests, chance)
        options.out.write_text(
            json.dumps(
                [
                    {"prompt": [chance.randrange(options.vocab_size) for _ in range(prompt)], "out": output}
                    for prompt, output in drawn
                ]
            )
        )
    except (TidePipeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tokens = [sum(column) for column in zip(*drawn, strict=True)]
    print(f"{len(drawn)} requests, {tokens[0]} prompt and {tokens[1]} output tokens: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
