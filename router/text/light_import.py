"""Imports transformers for its tokenizers alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from unittest import mock


def import_tokenizers_only() -> None:
    """Import transformers without PyTorch, which it would otherwise load for models that we never use.

    Spares the router two thirds of its start-up time and 250 MB. Lasts for the life of the process, so only
    a process that runs no model may call it. Does nothing if PyTorch is loaded already.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    find = importlib.util.find_spec

    def find_all_but_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find(name, package)

    with mock.patch("importlib.util.find_spec", find_all_but_torch):
        import transformers

        # The answer is cached: from here on transformers goes on without.
        assert not transformers.is_torch_available()
