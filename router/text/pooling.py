"""The pooling of a model's hidden states into the vector of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.model_files import read_json_object
from tidepipe_common.types.sampling import Pooling

AUTO, OFF = "auto", "off"
_CONFIG = Path("1_Pooling", "config.json")
_MODES = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_cls_token": Pooling.CLS,
}


def pooling_of(path: Path, wanted: str) -> Pooling | None:
    """As it is set; AUTO: as the checkpoint of sentence-transformers says, else the last token's. None: off.

    ConfigError if the checkpoint says something that there is not. ModelError if it cannot be read.
    """
    if wanted == OFF:
        return None
    if wanted != AUTO:
        return Pooling(wanted)
    file = path / _CONFIG
    if not path.is_dir() or not file.exists():
        return Pooling.LAST
    config: Any = read_json_object(file)
    chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise ConfigError(
            f"{file}: pools by {', '.join(chosen) or 'nothing'}; known are {', '.join(_MODES)}, one at a "
            "time: say with --pooling how to pool"
        )
    return _MODES[chosen[0]]
