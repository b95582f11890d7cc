"""`python -m tidepipe_common.structures.process`: tries structures out, each in a process that may be killed.

Started by `tidepipe_common.structures.checks`, which hands over one end of a socket as standard input: the
tokenizer comes through it first, then a descriptor for each structure. For each, this process
makes a copy of itself (the tokenizer is ready there), which limits its own time and memory, so that the
system ends it if need be.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import NoReturn

from llguidance import LLTokenizer

from tidepipe_common.process_limits import limit_process
from tidepipe_common.structures.errors import StructureError
from tidepipe_common.structures.frames import receive_frame, send_frame
from tidepipe_common.structures.grammar import make_tokenizer, try_out
from tidepipe_common.structures.limits import MAX_BYTES, MAX_CPU_S, MAX_WALL_S
from tidepipe_common.types.structure import Structure


def main() -> None:
    """Serve until the other end of the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for who started us, and closes us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(0)) as control:
        asked = json.loads(receive_frame(control))
        try:
            tokenizer = make_tokenizer(asked["tokenizer"], asked["vocab_size"], asked["eos_token_ids"])
        except StructureError as error:
            send_frame(control, str(error).encode())
            return
        send_frame(control, b"")
        gc.freeze()  # what is here stays shared with the copies
        while True:
            data, descriptors, *_ = socket.recv_fds(control, 1, 1)
            if not data:
                return
            with socket.socket(fileno=descriptors[0]) as client:
                if os.fork() == 0:
                    control.close()
                    _serve(client, tokenizer)


def _serve(client: socket.socket, tokenizer: LLTokenizer) -> NoReturn:
    """In the copy: one structure. Ends without an answer if it takes too much."""
    try:
        send_frame(client, b"")  # taken up
        _limit()
        structure = Structure(**json.loads(receive_frame(client)))
        try:
            try_out(tokenizer, structure)
            problem = ""
        except StructureError as error:
            problem = str(error)
        send_frame(client, problem.encode())
    finally:
        os._exit(0)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_process(pages * resource.getpagesize() + MAX_BYTES, MAX_CPU_S)
    os.nice(5)
    signal.setitimer(signal.ITIMER_REAL, MAX_WALL_S)


if __name__ == "__main__":
    main()
