"""Tokens as they come, and an early end: streaming.py --endpoint HOST:PORT"""

from __future__ import annotations

import argparse

import tidepipe


def main(endpoint: str) -> None:
    """Stream a story; leave another stream after its first sentence."""
    with tidepipe.connect(endpoint) as client:
        for event in client.stream("Once upon a time", max_tokens=60, temperature=0.8, top_p=0.95, seed=7):
            print(event.text, end="", flush=True)
        print("\n--")
        # Leaving the stream cancels the request; the cluster is free for others at once.
        with client.stream("Once upon a time", max_tokens=500, temperature=0) as stream:
            for event in stream:
                print(event.text, end="", flush=True)
                if "." in event.text:
                    break
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="`grpc=` of `tidepipe up`")
    main(parser.parse_args().endpoint)
