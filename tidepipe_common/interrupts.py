"""Ctrl-C while a process still imports its parts, which takes seconds: it ends, without a traceback."""

import signal


def end_at_interrupts() -> None:
    """Until the process takes SIGINT over; nothing if somebody else has, or ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
