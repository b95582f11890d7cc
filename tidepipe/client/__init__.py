"""The client SDK, public as `tidepipe`: prompts go in, answers come out, resumed after faults."""
