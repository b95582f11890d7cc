"""One vLLM engine that answers a workload; runs in vLLM's own environment, and knows nothing of TidePipe.

Reads its settings as JSON from the command line, says `ready` when it is, waits for a line on stdin, answers
all requests, prints one line of JSON.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Entry point; also of vLLM's own processes, which import this file."""
    from vllm import LLM, SamplingParams

    settings = json.loads(sys.argv[1])
    items = json.loads(Path(settings["workload"]).read_text())[settings["first"] :: settings["step"]]
    llm = LLM(model=settings["model"], **settings["engine"])
    prompts = [{"prompt_token_ids": item["prompt"]} for item in items]
    params = [
        SamplingParams(temperature=0.0, max_tokens=item["out"], ignore_eos=True, detokenize=False)
        for item in items
    ]
    llm.generate(prompts[:2], [SamplingParams(temperature=0.0, max_tokens=4)] * 2, use_tqdm=False)
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    answers = llm.generate(prompts, params, use_tqdm=False)
    end = time.monotonic()
    counts = [len(answer.outputs[0].token_ids) for answer in answers]
    result = {
        "seconds": end - begin,
        "prompt_tokens": sum(len(item["prompt"]) for item in items),
        "output_tokens": sum(counts),
        "short": sum(count != item["out"] for count, item in zip(counts, items, strict=True)),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
