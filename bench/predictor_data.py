"""Joins prompts and measured lengths to what `tidepipe predictor` reads.

    python -m bench.predictor_data PROMPTS.jsonl bench/data/smollm2-135m-lengths.csv -o DATA.jsonl

With --train, DATA-train.jsonl and DATA-test.jsonl (drawn with --seed) are written beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 512
TEMPERATURE = 0.7


def joined(prompts: Path, lengths: Path) -> list[dict[str, Any]]:
    """One line per answer, in the order of the lengths."""
    by_id = {}
    with prompts.open(encoding="utf-8") as source:
        for line in source:
            prompt = json.loads(line)
            by_id[prompt["id"]] = prompt
    with lengths.open(encoding="utf-8", newline="") as source:
        return [
            {
                "id": row["id"],
                "source": by_id[row["id"]]["source"],
                "prompt": by_id[row["id"]]["prompt"],
                "prompt_tokens": int(row["prompt_tokens"]),
                "output_tokens": int(row["output_tokens"]),
                "finish_reason": row["finish_reason"],
                "max_tokens": MAX_TOKENS,
                "temperature": TEMPERATURE,
            }
            for row in csv.DictReader(source)
        ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS.jsonl")
    parser.add_argument("lengths", type=Path, metavar="LENGTHS.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DATA.jsonl")
    parser.add_argument("--train", type=float, default=0.0, help="share of the training part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = joined(options.prompts, options.lengths)
    write(options.output, lines)
    if options.train:
        order = np.random.default_rng(options.seed).permutation(len(lines))
        shuffled = [lines[int(index)] for index in order]
        count = int(options.train * len(lines))
        for name, part in (("train", shuffled[:count]), ("test", shuffled[count:])):
            write(options.output.with_name(f"{options.output.stem}-{name}.jsonl"), part)


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"wrote {path}: {len(lines)} answers")


if __name__ == "__main__":
    main()
