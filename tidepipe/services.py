"""Where the packages of the services are: `router`, `controller`, `stage_worker` and the others.

In a checkout, which an editable install is, they lie beside this package and are found like it. Site-packages
is shared with strangers, who may have a `router` too: there, the wheel has them in a folder of this package,
and only processes that serve, or may start ones that do, look into it. `python -m tidepipe.services router
--listen ...` is what `python -P -m router --listen ...` is in a checkout.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.extras import SERVER, require

FOLDER = Path(__file__).parent / "_services"


def find_services() -> None:
    """Put them first on the path of this process and of those that it starts, where they are not already."""
    folder = str(FOLDER)
    if FOLDER.is_dir() and folder not in sys.path:
        sys.path.insert(0, folder)
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = folder + (os.pathsep + inherited if inherited else "")


def main() -> None:
    """Run a module of theirs as the main program."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m tidepipe.services MODULE [ARGUMENT ...], such as router --help")
    module = sys.argv[1]
    try:
        require(SERVER, f"`{module}`")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    find_services()
    del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
