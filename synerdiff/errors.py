"""Errors that cross a service boundary: a gRPC status code, a message for people, and fields for clients."""

from dataclasses import dataclass

import grpc


@dataclass(frozen=True)
class FieldViolation:
    """One bad field: its name as in the proto, and a sentence naming the value and the bound."""

    field: str
    description: str


class SynerDiffError(Exception):
    """Base of every error that a client may see. `code` is the gRPC status it is reported with."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(SynerDiffError):
    """INVALID_ARGUMENT: one or more fields are out of bounds."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class NotFound(SynerDiffError):
    """NOT_FOUND: an unknown model or job."""

    code = grpc.StatusCode.NOT_FOUND


class Unauthenticated(SynerDiffError):
    """UNAUTHENTICATED: the key or certificate that the call shows is unknown."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(SynerDiffError):
    """PERMISSION_DENIED: the caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class AlreadyExists(SynerDiffError):
    """ALREADY_EXISTS: a request_id was used before with another body."""

    code = grpc.StatusCode.ALREADY_EXISTS


class QueueFull(SynerDiffError):
    """RESOURCE_EXHAUSTED: the client may retry after `retry_after_s` seconds."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SynerDiffError):
    """DEADLINE_EXCEEDED: the request's own timeout ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(SynerDiffError):
    """CANCELLED: the job was cancelled or abandoned."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(SynerDiffError):
    """UNAVAILABLE: nothing was accepted; the same call may go through later."""

    code = grpc.StatusCode.UNAVAILABLE


class NotEnded(SynerDiffError):
    """FAILED_PRECONDITION: the job has not ended, so it cannot be deleted."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class StaleLeader(SynerDiffError):
    """FAILED_PRECONDITION: another leader holds the pool or the worker; the caller must stop planning.

    `newest_token`: the newest leader token that the refusing process has seen; 0: not known. The token of the next
    leadership must be above it, even if Redis remembers less.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, newest_token: int = 0) -> None:
        super().__init__(message)
        self.newest_token = newest_token
