"""LightGBM, where it can be had: the library needs OpenMP's runtime, which slim machines lack."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ModelError


@cache
def lightgbm() -> Any:
    """The module. ModelError, with what to do, if it cannot be loaded."""
    try:
        return importlib.import_module("lightgbm")
    except ImportError as error:
        raise ModelError(f"LightGBM cannot be imported ({error}): pip install 'tidepipe[server]'") from error
    except OSError:
        _load_openmp_of_torch()
    try:
        return importlib.import_module("lightgbm")
    except OSError as error:
        raise ModelError(
            f"LightGBM cannot be loaded ({error}); install OpenMP's runtime (apt-get install libgomp1)"
        ) from error


def _load_openmp_of_torch() -> None:
    """PyTorch's wheel brings a libgomp.so.1; once it is loaded the linker takes it for everybody."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(Path(folder, "lib").glob("libgomp*.so*")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
                return
