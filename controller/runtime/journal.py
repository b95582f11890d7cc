"""A journal of what a scheduler heard, and its replay: the same events give the same actions.

The first line says how the scheduler was made: {"journal": version, "settings": {..}}. Then one JSON object
per event, {"now": seconds, "event": name, fields..}, each followed by {"did": checksum} if anything was to be
done. So a journal is replayed with nothing but itself, or run again under another policy in virtual time
(`simulator/what_if.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO, get_args

import structlog
from pydantic import TypeAdapter, ValidationError

from controller.runtime.scheduler_spec import SchedulerSpec, scheduler_spec_from
from controller.scheduler.actions import Action
from controller.scheduler.events import Event
from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import check_writable, open_text, refuse_others, why_unreadable
from tidepipe_common.settings.defaults import JOURNAL_SUFFIX

VERSION = 1
_LEFT_OUT = ("features", "piece_gap_s", "keys", "trace_context", "prompt_logprobs_read", "vector", "signals")
"""Of a NewSequence, a PromptPiece and SampledTokens: what the core does not look at, or can reckon itself."""


log = structlog.get_logger()


class Journal:
    """Writes entries; whoever opened the file closes it.

    One that cannot be written ends; the service goes on.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._over = False

    def begin(self, spec: SchedulerSpec) -> None:
        """How the scheduler was made; first."""
        self._write({"journal": VERSION, "settings": spec.fields()})

    def note(self, event: Event, now: float) -> None:
        """Append one event; all of them, also those that change nothing: a replay takes no shortcuts."""
        self._write({"now": now, "event": type(event).__name__, **_fields(event)})

    def did(self, actions: Sequence[Action]) -> None:
        """What followed from the event before, so that a replay can be compared."""
        if actions:
            self._write({"did": checksum(actions)})

    def _write(self, line: dict[str, Any]) -> None:
        if self._over:
            return
        try:
            self._file.write(json.dumps(line, separators=(",", ":"), default=_plain) + "\n")
        except OSError as error:
            self._over = True
            log.error("the journal ends here: it cannot be written", reason=error.strerror)


def _plain(value: Any) -> Any:
    """What JSON has for one of a dataclass, or of an enumeration."""
    return value.value if isinstance(value, enum.Enum) else _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields as they are, none copied: a step has hundreds of tokens."""
    return {
        one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.name not in _LEFT_OUT
    }


def checksum(actions: Sequence[Action]) -> int:
    """Of everything that was to be done."""
    return zlib.crc32(repr(list(actions)).encode())


def open_journal(path: Path, instance_id: str) -> TextIO:
    """A file of that name, or one for the instance in that folder: a restarted controller begins another.

    ConfigError if it cannot be written, or another instance writes it.
    """
    try:
        # By the line: a controller that is killed leaves all but its last event.
        if path.suffix == JOURNAL_SUFFIX:
            path.parent.mkdir(parents=True, exist_ok=True)
            own = _own(path)
            own.truncate(0)
            return own
        path.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            again = f"-{number}" if number > 1 else ""
            with contextlib.suppress(FileExistsError):
                file = path / f"{instance_id}{again}{JOURNAL_SUFFIX}"
                return file.open("x", encoding="utf-8", buffering=1)
        raise AssertionError("numbers do not end")
    except OSError as error:
        raise ConfigError(f"cannot write the journal {path}: {error.strerror}") from error


def check_journal(path: Path) -> None:
    """ConfigError if `open_journal` would not have it: asked before a controller is started."""
    if path.suffix == JOURNAL_SUFFIX and path.exists():
        try:
            _own(path).close()
        except OSError as error:
            raise ConfigError(f"cannot write the journal {path}: {error.strerror}") from error
    else:
        check_writable(path, folder=path.suffix != JOURNAL_SUFFIX)


def _own(path: Path) -> TextIO:
    """The file, as it is, which nobody else has as long as it is open. OSError; ConfigError: somebody has."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK, 0o666)

    file = open(path, "a", encoding="utf-8", buffering=1, opener=at_once)  # noqa: SIM115 (its user closes it)
    try:
        refuse_others(os.fstat(file.fileno()), path)
        # Some file systems know no locks: there nobody is kept off.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"another instance writes the journal {path} at the moment; name another file, or a folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            file.close()
            raise
    return file


def read_scheduler_spec(path: Path) -> SchedulerSpec:
    """How the scheduler of a journal was made; ConfigError if the file does not say."""
    try:
        with open_text(path) as file:
            first = json.loads(file.readline() or "{}")
    except OSError as error:
        raise ConfigError(f"cannot read the journal {path}: {why_unreadable(error)}") from error
    except ValueError:
        first = None
    if not isinstance(first, dict) or first.get("journal") != VERSION:
        raise ConfigError(f"{path} does not begin as a journal of this version does")
    return scheduler_spec_from(first.get("settings"))


def read_checked(path: Path) -> Iterator[tuple[float, Event, int]]:
    """The entries with their actions' checksums; 0 if there was nothing to do.

    The last event has none either if the controller was killed while it decided.
    """
    pending: tuple[float, Event] | None = None
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
                if "journal" in fields:
                    continue
                if "did" in fields:
                    if pending is None:
                        raise ValueError("actions without an event")
                    yield (*pending, int(fields["did"]))
                    pending = None
                    continue
                if pending is not None:
                    yield (*pending, 0)
                now, name = fields.pop("now"), fields.pop("event")
                pending = float(now), _READERS[name].validate_python(fields)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise ConfigError(
                    f"{path}, line {number}: not a journal's entry ({where}: {first['msg']})"
                ) from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path}, line {number}: not a journal's entry ({error!r})") from error
    if pending is not None:
        yield (*pending, 0)


_READERS: dict[str, TypeAdapter[Event]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Event)}
"""Makes events of what JSON keeps of them; fields that older journals lack have defaults."""
