"""Runs the service."""

import sys

from tidepipe_common.interrupts import end_at_interrupts
from tidepipe_common.rpc import without_pool

end_at_interrupts()
without_pool()

from router.main import main  # noqa: E402 (takes seconds)

sys.exit(main())
