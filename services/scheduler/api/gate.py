"""The gate of every call: it identifies the caller and checks their rights before the request is read."""

import time
from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health
from prometheus_client import Counter

from services.scheduler.api.callers_file import CallersFile
from services.scheduler.callers import ANONYMOUS, Caller, set_calling
from synerdiff.errors import PermissionDenied, QueueFull, Unauthenticated

# Health says only whether the scheduler takes work; probes and load balancers ask for it.
FOR_ANYBODY = frozenset({health.SERVICE_NAME})
# Everything else, reflection too, is for operators.
FOR_CALLERS = frozenset({"synerdiff.v1.ImageGeneration"})

_BEARER = "bearer "
_unknown = Counter("synerdiff_unauthenticated_total", "Calls refused for want of a key or certificate that is known")


class Gate:
    """Identifies a caller by the key, else by the name in the certificate, which TLS has verified. Without `known`
    every caller may use every service; with `certificates` each under the name in their certificate."""

    def __init__(self, known: CallersFile | None = None, *, certificates: bool = False) -> None:
        self._known = known
        self._certificates = certificates

    def __call__(self, context: Any, method: str) -> None:
        """Accept a call, or raise Unauthenticated or PermissionDenied. `method`: "/package.Service/Method"."""
        service = method[1 : method.rfind("/")]
        if service in FOR_ANYBODY:
            return
        caller = self._caller(context)
        if caller is None:
            _unknown.inc()
            raise Unauthenticated("no caller is known by this key: send the metadata `authorization: Bearer KEY`")
        if not caller.operator and service not in FOR_CALLERS:
            raise PermissionDenied(f"{service} is for operators, and caller {caller.name!r} is none")
        set_calling(caller)

    def _caller(self, context: Any) -> Caller | None:
        if self._known is None:
            return Caller(_certificate_name(context), operator=True) if self._certificates else ANONYMOUS
        known = self._known.callers()
        key = _bearer_key(context)
        if key is not None:
            return known.with_key(key)
        return known.by_certificate.get(_certificate_name(context)) if self._certificates else None


def _bearer_key(context: Any) -> str | None:
    """The bearer key of the call: the first of several; None without one."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return str(value[len(_BEARER) :].strip())
    return None


def _certificate_name(context: Any) -> str:
    """The common name in the client's certificate, else its first alternative name; "" without."""
    shown = context.auth_context()
    for kind in ("x509_common_name", "x509_subject_alternative_name"):
        for name in shown.get(kind, ()):
            return str(name.decode(errors="replace"))
    return ""


class Rates:
    """Requests a second of each caller at this scheduler: a bucket of tokens that fills at the caller's rate and holds
    a second's worth."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, as of when

    def take(self, caller: Caller) -> None:
        """Count a request. Raises QueueFull, which says when the next one may come."""
        rate = caller.quota.requests_per_s
        if not rate:
            return
        now_s, most = self._now_s(), max(1.0, rate)
        tokens, as_of_s = self._buckets.get(caller.name, (most, now_s))
        tokens = min(most, tokens + (now_s - as_of_s) * rate)
        self._buckets[caller.name] = (tokens - 1 if tokens >= 1 else tokens), now_s
        if tokens < 1:
            message = f"caller {caller.name!r} has sent its requests_per_s={rate:g}"
            raise QueueFull(message, retry_after_s=(1 - tokens) / rate)
