"""The router's process."""

from __future__ import annotations

from collections.abc import Sequence

from router.requests.text_port import TextPort
from router.service import RouterService
from router.text.tokenizer import TextProcessor
from tidepipe_common.model_source import resolve_tokenizer
from tidepipe_common.rpc.lifecycle import run_service, settings_or_exit
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.tokenizer_source import leave_out_torch
from tidepipe_common.types.text_choices import TextChoices


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    settings = settings_or_exit(RouterSettings, arguments)

    def load_text(model: str, choices: TextChoices) -> TextPort:
        path = resolve_tokenizer(model)
        if path.is_dir():  # reading a GGUF file's tokenizer does need PyTorch
            leave_out_torch()
        return TextProcessor.load(path, choices)

    service = RouterService(settings, load_text)
    return run_service("router", service.run, log_level=settings.log_level, credentials=settings.credentials)
