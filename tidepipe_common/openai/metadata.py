"""What clients write beside a batch or a response, for themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tidepipe_common.limits import MAX_METADATA, MAX_METADATA_KEY_CHARACTERS, MAX_METADATA_VALUE_CHARACTERS

Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARACTERS)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARACTERS)],
    ],
    Field(max_length=MAX_METADATA),
]
