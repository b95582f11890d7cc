"""The mix of prompt and output tokens that a deployment is laid out for."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Tokens of a typical request, or of a whole workload: only their ratio counts.

    Two prompt tokens per output token unless said otherwise: conversations have one to five.
    """

    prompt: int = 2
    output: int = 1

    @classmethod
    def parse(cls, text: str) -> TokenMix:
        """From PROMPT:OUTPUT; ConfigError if it is something else."""
        try:
            prompt, output = (int(part) for part in text.split(":"))
        except ValueError:
            raise ConfigError(f"--token-mix must be two numbers such as 2:1; got {text!r}") from None
        if prompt < 1 or output < 1:
            raise ConfigError(f"--token-mix needs at least 1 token of each kind; got {text!r}")
        return cls(prompt, output)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.prompt}:{self.output}"

    @property
    def sampled_share(self) -> float:
        """Share of the computed tokens that need logits: all in decode, few in prefill, where only a
        prompt's last token does."""
        return self.output / (self.prompt + self.output)
