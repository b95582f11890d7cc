"""The `tidepipe` command, one file per subcommand: arguments go in, output and an exit code come out."""

import os
import sys

from tidepipe_common.interrupts import end_at_interrupts

if os.path.basename(sys.argv[0]) == "tidepipe":  # noqa: PTH119 (pathlib takes its time)
    # `main` takes it over.
    end_at_interrupts()
