"""Logging: JSON lines on stderr, or pretty ones when a person watches."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

MAX_FIELD_CHARACTERS = 4096
"""Of one field of a line; what strangers send stands in some of them."""
_HEAD_CHARACTERS = MAX_FIELD_CHARACTERS * 3 // 4
_SCALARS = (int, float, bool, type(None))


def configure_logging(service: str, level: str = "info") -> None:
    """Set up structlog for this process; every line carries `service`. Libraries' warnings too."""
    pretty = sys.stderr.isatty()
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not pretty:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, clip_fields, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def clip_fields(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """A structlog processor: no field is longer than MAX_FIELD_CHARACTERS, whatever it is."""
    for name, value in event.items():
        if name == "exc_info" or isinstance(value, _SCALARS):
            continue
        text = value if isinstance(value, str) else repr(value)
        if len(text) > MAX_FIELD_CHARACTERS:
            event[name] = _clip(text)
    return event


def _clip(text: str) -> str:
    """Its beginning and, where a traceback says what went wrong, its end."""
    tail = text[len(text) - (MAX_FIELD_CHARACTERS - _HEAD_CHARACTERS) :]
    return f"{text[:_HEAD_CHARACTERS]} ... [{len(text) - MAX_FIELD_CHARACTERS} characters] ... {tail}"


class _ToStructlog(logging.Handler):
    """Lines of libraries that know of `logging` only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Part of logging.Handler."""
        try:
            structlog.get_logger().log(
                record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
            )
        except Exception:
            self.handleError(record)
