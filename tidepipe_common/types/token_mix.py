"""The mix of prompt and output tokens that a deployment is laid out for."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Tokens of a typical request, or of a whole workload: only their ratio counts.

    prompt: those that are computed; what is found in the cache costs no layer anything.
    Two prompt tokens per output token unless said otherwise: conversations have one to five.
    context: tokens that each of them sees on average; 0 if that is not known, or few.
    """

    prompt: int = 2
    output: int = 1
    context: int = 0

    @classmethod
    def parse(cls, text: str) -> TokenMix:
        """From PROMPT:OUTPUT or PROMPT:OUTPUT:CONTEXT; ConfigError if it is something else."""
        try:
            prompt, output, *rest = (int(part) for part in text.split(":"))
            (context,) = rest or (0,)
        except ValueError:
            raise ConfigError(
                f"--token-mix must be two numbers such as 2:1, or three such as 2:1:1600; got {text!r}"
            ) from None
        if prompt < 1 or output < 1:
            raise ConfigError(f"--token-mix needs at least 1 token of each kind; got {text!r}")
        if context < 0:
            raise ConfigError(f"--token-mix has a context of less than 0 tokens; got {text!r}")
        return cls(prompt, output, context)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.prompt}:{self.output}" + (f":{self.context}" if self.context else "")

    @property
    def sampled_share(self) -> float:
        """Share of the computed tokens that need logits: all in decode, few in prefill, where only a
        prompt's last token does."""
        return self.output / (self.prompt + self.output)
