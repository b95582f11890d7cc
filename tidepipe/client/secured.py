"""How clients reach a secured cluster."""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import replace
from pathlib import Path

from tidepipe_common.security.credentials import Credentials, is_loopback
from tidepipe_common.security.process import own

_ASK_S = 2.0


def client_credentials(
    *,
    api_key: str | None = None,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
) -> Credentials:
    """What is given, over TIDEPIPE_API_KEY, TIDEPIPE_TLS_CA, TIDEPIPE_TLS_CERT and TIDEPIPE_TLS_KEY.

    api_key: as `tidepipe keys add` printed it. tls_ca: whose certificates to trust. tls_cert, tls_key: own
    certificate, for clusters that ask for one. All files are PEM.
    """
    default = own()
    return replace(
        default,
        api_key=api_key or default.api_key,
        ca_file=Path(tls_ca) if tls_ca else default.ca_file,
        cert_file=Path(tls_cert) if tls_cert else default.cert_file,
        key_file=Path(tls_key) if tls_key else default.key_file,
    )


def no_answer(endpoint: str, credentials: Credentials | None, ask_s: float = _ASK_S) -> str:
    """Why a connection may have failed; TLS alone does not say more to those whom it turns away.

    ask_s: for the answer of whoever is there, _ASK_S at most. Call it in a thread where others wait.
    """
    if why := _not_found(endpoint):
        return f"no TidePipe router at {endpoint}: {why}"
    if _refused(endpoint, min(ask_s, _ASK_S)):
        host, _, port = endpoint.rpartition(":")
        start = f"start a cluster: `tidepipe up --grpc-port {port}`, or " if is_loopback(host) else ""
        return (
            f"no TidePipe router answers at {endpoint}: nothing listens there; {start}give what stands "
            "behind `grpc=` of one that runs"
        )
    if _speaks_http(endpoint, (credentials or own()).secure, min(ask_s, _ASK_S)):
        return (
            f"{endpoint} is an HTTP port; TidePipe's commands and SDK speak gRPC: "
            "give the address behind `grpc=` in the line that `tidepipe up` printed"
        )
    if (credentials or own()).secure:
        hint = (
            "check that it speaks TLS under this name and CA, "
            "that neither it nor you have a certificate that expired, and that it asks for none that you lack"
        )
    else:
        hint = "if it is secured, give --tls-ca (and --api-key, or a certificate)"
    return f"no TidePipe router answers at {endpoint}; {hint}"


def _not_found(endpoint: str) -> str:
    """Why the name of the machine stands for no address; empty if it does."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return f"{host}: {(error.strerror or str(error)).lower()}"
    except (OSError, ValueError):
        pass
    return ""


def _refused(endpoint: str, ask_s: float) -> bool:
    """True if the machine is there, and says that nobody listens."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ask_s).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _speaks_http(endpoint: str, secure: bool, ask_s: float) -> bool:
    """True if a web server answers there. It is told nothing, so its certificate does not matter."""
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host.strip("[]"), int(port)), ask_s))
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = stack.enter_context(context.wrap_socket(connection))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5).startswith(b"HTTP")
    return False
