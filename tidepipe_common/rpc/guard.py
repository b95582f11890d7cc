"""The guard of a gRPC server: calls are let in by the rules of `tidepipe_common.security.principals`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from tidepipe_common.errors import PermissionDeniedError, UnauthenticatedError
from tidepipe_common.security.caller import note_caller, with_key, with_principals
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.key_access import KeyAccess, bearer
from tidepipe_common.security.principals import SERVICES, Rule, principals_of, rule_of

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger()


class AccessGuard:
    """Certificate, cluster token, or API key; then the rule of the service.

    A server without TLS has no more than the token: services are told from strangers by it, and what is open
    to any role of clients is open to everybody.
    """

    def __init__(self, credentials: Credentials, keys: KeyAccess | None) -> None:
        """keys: None if API keys open nothing here."""
        self._credentials = credentials
        self._keys = keys

    def admit(self, method: str, context: Context) -> Callable[[], None]:
        """Part of Guard."""
        rule = rule_of(method)
        if rule.everyone:
            return _nothing
        try:
            return self._admit(rule, context)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            log.warning("refused", method=method, peer=context.peer(), reason=str(error))
            raise

    def _admit(self, rule: Rule, context: Context) -> Callable[[], None]:
        uris = [uri.decode() for uri in context.auth_context().get("peer_uri", ())]
        principals = principals_of(uris)
        presented = bearer(authorization_of(context))
        if not principals and presented is not None and self._credentials.accepts_token(presented):
            principals = frozenset(SERVICES)
        if principals:
            if principals & rule.allowed:
                note_caller(with_principals(principals))
                return _nothing
            who = ", ".join(sorted(principals))
            raise PermissionDeniedError(
                f"{who} may not call this: it is for {', '.join(sorted(rule.allowed))}"
            )
        if not self._credentials.secure:
            if rule.key_roles:
                return _nothing
            raise UnauthenticatedError(
                "this is for services of the cluster, which show its token (TIDEPIPE_CLUSTER_TOKEN_FILE)"
            )
        if self._keys is not None:
            lease = self._keys.enter(presented, *rule.key_roles)
            note_caller(with_key(lease.key))
            return lease.release
        raise UnauthenticatedError(
            "nobody is known by this certificate, token or key; services need a certificate of the cluster "
            "(`tidepipe certs make`) or its token"
        )


def authorization_of(context: Context) -> str | None:
    """What the caller says to be let in, such as `Bearer KEY`; None if nothing."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str):
            return value
    return None


def _nothing() -> None:
    """Nothing is to be given back."""
