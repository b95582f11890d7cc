"""One prompt, one answer: quickstart.py --endpoint HOST:PORT"""

from __future__ import annotations

import argparse

import tidepipe


def main(endpoint: str) -> None:
    """Ask for a few tokens and show what came back."""
    with tidepipe.connect(endpoint) as client:
        print("served:", ", ".join(model.name for model in client.models()))
        completion = client.generate("The capital of France is", max_tokens=8, temperature=0)
        print(completion.text)
        usage = completion.usage
        print(
            f"{usage.prompt_tokens} prompt and {usage.output_tokens} output tokens, {usage.total_ms:.0f} ms"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="`grpc=` of `tidepipe up`")
    main(parser.parse_args().endpoint)
