"""transformers answers a workload: padded batches, sorted by length. Speaks as vllm_offline.py does."""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Entry point."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    items = json.loads(Path(settings["workload"]).read_text())
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    items.sort(key=lambda item: item["out"])
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    tokens = 0
    with torch.inference_mode():
        for first in range(0, len(items), settings["batch"]):
            batch = items[first : first + settings["batch"]]
            width = max(len(item["prompt"]) for item in batch)
            longest = max(item["out"] for item in batch)
            ids = torch.tensor([[0] * (width - len(item["prompt"])) + item["prompt"] for item in batch])
            mask = torch.tensor(
                [[0] * (width - len(item["prompt"])) + [1] * len(item["prompt"]) for item in batch]
            )
            out = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
            # What goes beyond a request's own length is padding, too.
            tokens += sum(min(item["out"], out.shape[1] - width) for item in batch)
    result = {
        "seconds": time.monotonic() - begin,
        "prompt_tokens": sum(len(item["prompt"]) for item in items),
        "output_tokens": tokens,
        "short": int(tokens != sum(item["out"] for item in items)),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
