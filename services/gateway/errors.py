"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}, with a status that clients act on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from starlette.responses import Response

from synerdiff.errors import InvalidRequest, QueueFull, SynerDiffError

INVALID = "invalid_request_error"
_SERVER = "server_error"
_MAX_MESSAGE_CHARACTERS = 1024

# OpenAI's client obeys this header before any rule of its own.
_NO_RETRY = {"x-should-retry": "false"}

# The parameters of the OpenAI API that the fields of a GenerateRequest come from, where their names differ.
_PARAMS = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "image_format": "output_format",
    "preview_every": "partial_images",
    "request_id": "Idempotency-Key",
    "skip_cfg.steps": "skip_cfg",
    "skip_cfg.mode": "skip_cfg",
    "skip_cfg.max_fraction": "skip_cfg",
}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error. `param`: the parameter it is about; `code`: for programs, as OpenAI has it."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = "invalid_value"
    headers: Mapping[str, str] | None = None

    @property
    def envelope(self) -> dict[str, Any]:
        """The error as OpenAI puts it."""
        whole = len(self.message) <= _MAX_MESSAGE_CHARACTERS
        message = self.message if whole else self.message[: _MAX_MESSAGE_CHARACTERS - 3] + "..."
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an answer. ASCII, even where it quotes a request that is not."""
        return Response(json.dumps(self.envelope), self.status, headers=self.headers, media_type="application/json")


@dataclass(frozen=True)
class _Kind:
    """How errors of one gRPC code are answered. `final`: asking again cannot help."""

    status: int
    type: str
    code: str | None
    param: str | None = None
    final: bool = False


_BY_CODE: Mapping[grpc.StatusCode, _Kind] = {
    grpc.StatusCode.INVALID_ARGUMENT: _Kind(400, INVALID, "invalid_value"),
    grpc.StatusCode.NOT_FOUND: _Kind(404, INVALID, "not_found"),
    grpc.StatusCode.ALREADY_EXISTS: _Kind(409, INVALID, "idempotency_key_reused", "Idempotency-Key", final=True),
    grpc.StatusCode.FAILED_PRECONDITION: _Kind(409, INVALID, "failed_precondition", final=True),
    grpc.StatusCode.CANCELLED: _Kind(409, INVALID, "job_cancelled", final=True),
    grpc.StatusCode.UNAUTHENTICATED: _Kind(401, "authentication_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: _Kind(403, "permission_error", "permission_denied"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _Kind(429, "rate_limit_error", "resource_exhausted"),
    grpc.StatusCode.DEADLINE_EXCEEDED: _Kind(504, _SERVER, "timeout", final=True),
    grpc.StatusCode.UNAVAILABLE: _Kind(503, _SERVER, "unavailable"),
    grpc.StatusCode.UNIMPLEMENTED: _Kind(501, _SERVER, "unsupported", final=True),
}
_UNKNOWN = _Kind(500, _SERVER, "internal_error")


def api_error(error: SynerDiffError) -> ApiError:
    """The answer to a scheduler's error."""
    kind = _BY_CODE.get(error.code, _UNKNOWN)
    if isinstance(error, QueueFull):
        return too_many(error.message, error.retry_after_s, "queue_full")
    if isinstance(error, InvalidRequest):
        first = error.violations[0].field
        message = "; ".join(dict.fromkeys(f"{param_of(v.field)}: {v.description}" for v in error.violations))
        return ApiError(kind.status, message, kind.type, param_of(first), kind.code)
    return ApiError(kind.status, error.message, kind.type, kind.param, kind.code, _NO_RETRY if kind.final else None)


def too_many(message: str, retry_after_s: float, code: str) -> ApiError:
    """429, and when to come back: in whole seconds, as HTTP has it, and in ms, which OpenAI's client reads first."""
    headers = {
        "retry-after": str(max(1, math.ceil(retry_after_s))),
        "retry-after-ms": str(max(1, math.ceil(retry_after_s * 1000))),
    }
    return ApiError(429, message, "rate_limit_error", None, code, headers)


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """404 for a model that no scheduler knows."""
    models = f"the models are: {', '.join(known)}" if known else "there are no models yet"
    return ApiError(404, f"model: {name[:64]!r} is unknown; {models}", INVALID, "model", "model_not_found")


def invalid_body(errors: Sequence[Any]) -> ApiError:
    """400 for a body that is not of its schema; `errors` as pydantic lists them, of which at least one."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(path)[:64] or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {param!r}", INVALID, param, "unknown_parameter")
    if first["type"] == "missing":
        what = f"Missing required parameter: {param!r}" if param else "the body is to be a JSON object"
        return ApiError(400, what, INVALID, param, "missing_required_parameter")
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is no JSON: {why}", code="invalid_json")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, INVALID, param, "invalid_value")


def param_of(field_name: str) -> str:
    """The OpenAI API's name of a field of a GenerateRequest."""
    return _PARAMS.get(field_name, field_name)
