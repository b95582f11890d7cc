"""Files and batches as they are stored, and as the OpenAI API shows them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

from tidepipe_common.openai.answers import Batch, BatchError, BatchStatus, File, FilePurpose
from tidepipe_common.text.text import repaired_json

VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING = "validating", "in_progress", "finalizing", "cancelling"
COMPLETED, FAILED, CANCELLED, EXPIRED = "completed", "failed", "cancelled", "expired"
UNFINISHED = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)
"""A batch in one of these states goes on after a restart."""


MAX_NAME_CHARACTERS = 512
NAMELESS = "file.jsonl"


def safe_name(given: str) -> str:
    """A file's name as clients may save by it: without folders, and without what no terminal should be shown.

    Of rows of earlier versions as well, which kept names as they came.
    """
    name = re.split(r"[/\\]", given)[-1][:MAX_NAME_CHARACTERS]
    name = "".join(one if one.isprintable() else "_" for one in name).strip()
    return NAMELESS if name.strip(".") == "" else name


@dataclass(frozen=True, slots=True)
class FileRecord:
    """created, expires: Unix time, seconds; expires None: never.

    batch_id, failed: of a batch's answers, the good or the failed ones.

    owner: whose it is, see tidepipe_common.security.caller; None: stored before there were owners.
    """

    id: str
    created: int
    bytes: int
    filename: str
    purpose: str
    batch_id: str | None = None
    failed: bool | None = None
    expires: int | None = None
    owner: str | None = None

    def body(self) -> File:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": safe_name(self.filename),
            "purpose": cast(FilePurpose, self.purpose),
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """times: Unix time by state, seconds. errors: why it failed, as the API shows it.

    owner: whose it is, as a file's.
    """

    id: str
    number: int
    endpoint: str
    input_file_id: str
    window: str
    created: int
    expires: int
    status: str = VALIDATING
    metadata: dict[str, str] | None = None
    times: dict[str, int] = field(default_factory=dict)
    counts: Counts = Counts()
    errors: list[BatchError] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    owner: str | None = None

    @property
    def finished(self) -> bool:
        """True once nothing changes any more."""
        return self.status not in UNFINISHED

    def entered(self, status: str, now: int, **changes: Any) -> BatchRecord:
        """The batch in its next state."""
        return dataclasses.replace(self, status=status, times={**self.times, status: now}, **changes)

    def to_json(self) -> str:
        """For the database."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BatchRecord:
        """From the database; ValueError if it is damaged.

        Earlier versions stored strings unchecked: what could not be shown is repaired.
        """
        try:
            fields = repaired_json(json.loads(text))
            return cls(**{**fields, "counts": Counts(**fields["counts"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no record of a batch: {error}") from None

    def body(self) -> Batch:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.window,
            "status": cast(BatchStatus, self.status),
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created,
            "expires_at": self.expires,
            "in_progress_at": self.times.get(IN_PROGRESS),
            "finalizing_at": self.times.get(FINALIZING),
            "completed_at": self.times.get(COMPLETED),
            "failed_at": self.times.get(FAILED),
            "expired_at": self.times.get(EXPIRED),
            "cancelling_at": self.times.get(CANCELLING),
            "cancelled_at": self.times.get(CANCELLED),
            "request_counts": {
                "total": self.counts.total,
                "completed": self.counts.completed,
                "failed": self.counts.failed,
            },
            "metadata": self.metadata,
        }
