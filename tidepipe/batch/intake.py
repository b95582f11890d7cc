"""From input lines to requests: parsing, duplicate ids, the model's name, and what makes retries safe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tidepipe.batch.input_file import MAX_LINE_BYTES, InputLine
from tidepipe_common.openai.batch import BatchItem, BatchLineError, parse_line, seeded

_MIB = 2**20


class Intake:
    """Takes the lines in their order, each once."""

    def __init__(self, run_id: str, served: Iterable[str], sources: Iterable[str] = ()) -> None:
        """served: names of models and adapters. sources: what requests may call the first of them as well."""
        self._run_id = run_id
        self._served = tuple(dict.fromkeys(served))
        self._sources = tuple(sources)
        self._first_lines: dict[str, int] = {}

    def line_id(self, number: int) -> str:
        """The `id` of an output line."""
        return f"batch_req_{self._run_id[:12]}_{number}"

    def request_id(self, line: InputLine) -> str:
        """Stable over resumptions: what still runs at the router is attached to, not started twice.

        A line that was changed in between is another request.
        """
        return f"batch-{self._run_id}-{line.number}-{line.digest[:8]}"

    def take(self, line: InputLine) -> BatchItem | BatchLineError:
        """The request in a line, or why there is none."""
        if line.too_long:
            text = f"line {line.number}: longer than {MAX_LINE_BYTES // _MIB} MiB"
            return BatchLineError(None, text, "line_too_long")
        parsed = parse_line(line.data, line.number, self.request_id(line))
        if parsed.custom_id is not None:
            first = self._first_lines.setdefault(parsed.custom_id, line.number)
            if first != line.number:
                text = f"line {line.number}: custom_id {parsed.custom_id!r} is already used by line {first}"
                return BatchLineError(parsed.custom_id, text, "duplicate_custom_id", "custom_id")
        if isinstance(parsed, BatchLineError):
            return parsed
        model = parsed.request.model
        if model is not None:
            name = self._name(model)
            if name is None:
                served = ", ".join(self._served)
                text = f"line {line.number}: model {model!r} is not served here; served: {served}"
                return BatchLineError(parsed.custom_id, text, "model_not_found", "model", status=404)
            parsed = replace(parsed, request=replace(parsed.request, model=name))
        return seeded(parsed, parsed.request.request_id)

    def _name(self, model: str) -> str | None:
        """The name under which it is served; None if it is not."""
        names = (model, Path(model).name)
        if found := next((name for name in names if name in self._served), None):
            return found
        return self._served[0] if any(name in self._sources for name in names) else None
