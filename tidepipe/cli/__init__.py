"""The `tidepipe` command: one file per subcommand."""

import os
import signal
import sys

if (
    os.path.basename(sys.argv[0]) == "tidepipe"  # noqa: PTH119 (pathlib takes its time)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Ctrl-C while the command is still being loaded ends it without a word; `main` takes it over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
