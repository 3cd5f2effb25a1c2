"""Errors on the wire: SynerDiffError <-> gRPC status with google.rpc details (BadRequest, RetryInfo, ErrorInfo).

Servicers simply raise SynerDiffError; the interceptor that `synerdiff.rpc` puts into every server calls `abort`.
"""

import re
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from synerdiff.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    NotEnded,
    NotFound,
    PermissionDenied,
    QueueFull,
    StaleLeader,
    SynerDiffError,
    Unauthenticated,
    Unavailable,
)

ERROR_DOMAIN = "synerdiff"
_NEWEST_TOKEN = "leader_token"  # in ErrorInfo.metadata of a StaleLeader

# A status travels as response headers, which clients limit to 8 KiB by default: the message twice (percent-encoded,
# and inside the base64 of the details), the violations once.
MAX_MESSAGE_BYTES = 1024
MAX_VIOLATIONS_BYTES = 2048

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_PLAIN_ERRORS: tuple[type[SynerDiffError], ...] = (
    NotFound,
    Unauthenticated,
    PermissionDenied,
    AlreadyExists,
    DeadlineExceeded,
    Cancelled,
    Unavailable,
    StaleLeader,
)
_BY_CODE: dict[grpc.StatusCode, type[SynerDiffError]] = {error.code: error for error in _PLAIN_ERRORS}


def code_name(number: int) -> str:
    """The name of a google.rpc.Code; UNKNOWN for any other number."""
    name: str = _CODES.get(number, grpc.StatusCode.UNKNOWN).name
    return name


def to_status(error: SynerDiffError) -> status_pb2.Status:
    """`error` as a google.rpc.Status, small enough for any client's header limit."""
    status = status_pb2.Status(code=error.code.value[0], message=_shortened(error.message, MAX_MESSAGE_BYTES))
    status.details.extend(_packed(_details(error)))
    return status


async def abort(context: Any, error: SynerDiffError) -> NoReturn:
    """End a call of a grpc.aio servicer with the rich status of `error`."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, tuple(status.trailing_metadata))
    raise AssertionError("abort returned")


def from_rpc_error(error: Any) -> SynerDiffError:
    """The SynerDiffError of a grpc.RpcError's details; without details, one of the same code."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    if status is None:
        return error_for(error.code().value[0], error.details() or "")
    return _from_status(status)


def error_for(code: int, message: str) -> SynerDiffError:
    """The error of a google.rpc.Code, as job records and Failed events name it."""
    status_code = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    error_class = _BY_CODE.get(status_code)
    if error_class is not None:
        return error_class(message)
    error = SynerDiffError(message)
    error.code = status_code
    return error


def _from_status(status: status_pb2.Status) -> SynerDiffError:
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        detail.Unpack(retry_info)
    if bad_request.field_violations:
        return InvalidRequest(*(FieldViolation(v.field, v.description) for v in bad_request.field_violations))
    if status.code == QueueFull.code.value[0] and info.reason == _reason(QueueFull):
        return QueueFull(status.message, retry_info.retry_delay.ToTimedelta().total_seconds())
    if status.code == NotEnded.code.value[0] and info.reason == _reason(NotEnded):
        return NotEnded(status.message)
    error = error_for(status.code, status.message)
    if isinstance(error, StaleLeader):
        error.newest_token = int(info.metadata.get(_NEWEST_TOKEN, "0"))
    return error


def _details(error: SynerDiffError) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=_reason(type(error)), domain=ERROR_DOMAIN)
    if isinstance(error, StaleLeader):
        info.metadata[_NEWEST_TOKEN] = str(error.newest_token)
    details: list[Message] = [info]
    if isinstance(error, InvalidRequest):
        details.append(_bad_request(error.violations))
    if isinstance(error, QueueFull):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _bad_request(violations: Iterable[FieldViolation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    room = MAX_VIOLATIONS_BYTES
    for violation in violations:
        description = _shortened(violation.description, 512)
        room -= len(violation.field) + len(description.encode())
        if room < 0:
            break
        bad_request.field_violations.add(field=violation.field, description=description)
    return bad_request


def _packed(messages: Iterable[Message]) -> Iterable[any_pb2.Any]:
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        yield packed


def _reason(error_class: type[SynerDiffError]) -> str:
    """The class name as google.rpc.ErrorInfo wants reasons: UPPER_SNAKE_CASE."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error_class.__name__).upper()


def _shortened(text: str, max_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode(errors="ignore") + "..."
