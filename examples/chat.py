"""A conversation in the terminal, with the model's own template: chat.py --endpoint HOST:PORT

Reads questions line by line until the input ends: `echo "Who are you?" | python chat.py --endpoint ...`
"""

from __future__ import annotations

import argparse
import sys

import tidepipe


def main(endpoint: str, system: str) -> None:
    """Answer each line, remembering what was said."""
    turns = [tidepipe.ChatTurn("system", system)]
    with tidepipe.connect(endpoint) as client:
        for line in sys.stdin:
            turns.append(tidepipe.ChatTurn("user", line.strip()))
            answer = ""
            for event in client.stream_chat(turns, max_tokens=200, temperature=0.2, top_p=0.9):
                print(event.text, end="", flush=True)
                answer += event.text
            print()
            turns.append(tidepipe.ChatTurn("assistant", answer))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="`grpc=` of `tidepipe up`")
    parser.add_argument("--system", default="You are a helpful assistant. Answer briefly.")
    options = parser.parse_args()
    main(options.endpoint, options.system)
