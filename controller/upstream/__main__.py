"""Runs the service."""

import sys

from tidepipe_common.interrupts import end_at_interrupts

end_at_interrupts()

from controller.upstream.service import main  # noqa: E402 (takes seconds)

sys.exit(main())
