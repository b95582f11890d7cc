"""A port that a process and its successor listen on together, until the first one has left.

Both set SO_REUSEPORT, so the kernel deals connections out to both; one that waits in the queue of a socket
that is closed would be lost. So the successor has all new ones sent to itself, while the other takes in what
it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from tidepipe_common.errors import ConfigError
from tidepipe_common.numerals import host_and_port

_ATTACH_REUSEPORT_CBPF = 51
_RETURN_CONSTANT = 0x06


def check_free(listen: str) -> None:
    """ConfigError if somebody listens there: two that share it by mistake would each get half the calls."""
    address = host_and_port(listen)
    if address is None or address[1] == 0:
        return  # whoever binds says what is wrong
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {listen}: the port is in use or not allowed ({error.strerror or error}); "
                "choose another one (port 0 picks a free one)"
            ) from error


def take_all(listening: socket.socket) -> None:
    """From now on all connections come to the newest of two sockets; once one is left, to that.

    Where the kernel cannot do this they go to either, which matters only for those in the other's queue.
    """
    # The program is one instruction: return 1, the place of the second socket. With one socket there is no
    # such place, and then the kernel chooses by itself.
    program = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN_CONSTANT, 0, 0, 1))
    # struct sock_fprog: the number of instructions, and where they are.
    argument = struct.pack("HP", 1, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF, argument)
