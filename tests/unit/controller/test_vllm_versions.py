"""Which versions of vLLM are taken, and what is said to the others."""

from __future__ import annotations

import pytest

from controller.engines.vllm.engine_options import parse_engine_arguments
from controller.engines.vllm_scheduler.versions import check_version
from tidepipe_common.errors import ConfigError


def test_only_the_known_minor_is_taken() -> None:
    check_version("0.32.0")
    check_version("0.32.4+cpu")
    for other in ("0.31.2", "0.33.0", "1.32.0", "0.33.0rc1", "dev"):
        with pytest.raises(ConfigError, match=r"works with vLLM >=0\.32,<0\.33"):
            check_version(other)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[1]", "JSON object"),
        ("{", "JSON object"),
        ('{"dtype": "half"}', "--dtype"),
        ('{"async_scheduling": true}', "cannot be given"),
        ('{"max_num_seqs": 0}', "max_num_seqs must be 1 to"),
    ],
)
def test_engine_arguments_that_are_ours_are_named(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_engine_arguments(text)
