"""Who calls, and under which id: headers of an HTTP request -> metadata of its gRPC calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.gateway.errors import ApiError
from synerdiff.client import AsyncClient

# A caller's identity, and the W3C context of its trace, go on as they came.
_PASSED_ON = ("authorization", "traceparent", "tracestate")
_MAX_VALUE_BYTES = 4096


@dataclass(frozen=True)
class Caller:
    """Sender of one HTTP request. `request_id`: its Idempotency-Key, or drawn; `returns`: it may ask under it again."""

    client: AsyncClient
    request_id: str
    returns: bool


def caller(client: AsyncClient, headers: Mapping[str, str], request_id: str) -> Caller:
    """The sender of a request with these headers. Raises ApiError for a header that gRPC cannot carry."""
    metadata = tuple((name, _metadata_value(name, headers[name])) for name in _PASSED_ON if headers.get(name))
    returns = bool(headers.get("idempotency-key"))
    return Caller(client.with_metadata(metadata) if metadata else client, request_id, returns)


def _metadata_value(name: str, value: str) -> str:
    if value.isascii() and value.isprintable() and len(value) <= _MAX_VALUE_BYTES:
        return value
    if name == "authorization":
        raise ApiError(
            401, "the Authorization header is no bearer key", "authentication_error", None, "invalid_api_key"
        )
    raise ApiError(400, f"{name}: has characters that are not printable ASCII", param=name)
