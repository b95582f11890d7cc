"""A batch file in OpenAI's format, answered by `tidepipe batch`: batch_file.py --endpoint HOST:PORT

Stop it with Ctrl-C and start it again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main(endpoint: str, folder: Path) -> int:
    """Questions in, answers out."""
    source, target = folder / "questions.jsonl", folder / "answers.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for country in ("France", "Japan", "Kenya", "Peru"):
            question = {"role": "user", "content": f"What is the capital of {country}?"}
            line = {
                "custom_id": country,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"messages": [question], "max_tokens": 24, "temperature": 0},
            }
            file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "tidepipe.cli.main", "batch", str(source), "-o", str(target)]
    code = subprocess.run([*command, "--endpoint", endpoint], check=False).returncode
    if code in (0, 1):
        for text in target.read_text(encoding="utf-8").splitlines():
            answer = json.loads(text)
            body = answer["response"]["body"]
            shown = answer["error"] or body["choices"][0]["message"]["content"].strip()
            print(f"{answer['custom_id']}: {shown}")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="`grpc=` of `tidepipe up`")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    sys.exit(main(options.endpoint, options.folder))
