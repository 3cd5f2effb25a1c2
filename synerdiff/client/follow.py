"""Following a job through broken connections: the only place where a client reconnects."""

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_status import rpc_status
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from synerdiff.errors import QueueFull, SynerDiffError, Unavailable
from synerdiff.status import from_rpc_error
from synerdiff.tracing import INSTRUMENTATION
from synerdiff.v1 import images_pb2

Metadata = tuple[tuple[str, str], ...]

_SERVICE = "synerdiff.v1.ImageGeneration"


@contextlib.contextmanager
def client_span(method: str, request: images_pb2.GenerateRequest) -> Iterator[Metadata]:
    """A span around making a job, below the application's current one. Yields the metadata that hands its trace on.

    It is never made the current one: the body may be a generator, and its caller would find the span in its context.
    """
    # An application that has a current span, or says where spans go, has imported this.
    if "opentelemetry.trace" not in sys.modules:
        yield ()
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {
        "rpc.system": "grpc",
        "rpc.method": f"{_SERVICE}/{method}",
        "synerdiff.request_id": request.request_id,
        "synerdiff.model": request.model,
    }
    tracer = trace.get_tracer(INSTRUMENTATION)
    span = tracer.start_span(f"{_SERVICE}/{method}", kind=trace.SpanKind.CLIENT, attributes=attributes)
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(span))
    try:
        yield tuple(headers.items())
    except Exception as error:
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
        raise
    finally:
        span.end()


T = TypeVar("T")

# The signs of a connection that broke under a call, when the other end gave no reason of its own.
_BROKEN = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
_TERMINAL = frozenset({"finished", "failed", "cancelled"})
_BACK_OFF = wait_random_exponential(multiplier=0.1, max=2.0)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try. `patience_s`: without any contact; `wait_when_full`: also as long as the queue is full.

    `proxy`: the proxy of the calls, named when they fail; "" for none.
    """

    patience_s: float
    wait_when_full: bool
    proxy: str = ""


def is_broken_connection(error: BaseException) -> bool:
    """Whether the same call may be made again: no answer came, or it was cut off."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    return error.code() in _BROKEN and rpc_status.from_call(error) is None


async def persist(attempt: Callable[[float | None], Awaitable[T]], policy: RetryPolicy, deadline: float | None) -> T:
    """Make a call until it is answered. `attempt` is given the seconds that are left, None without a deadline.

    Raises the SynerDiffError that was answered, DeadlineExceeded when `deadline` (monotonic, s) passed during a call,
    and Unavailable without an answer for `policy.patience_s`, or until the deadline.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: is_broken_connection(error) or _is_full(error, policy)),
        wait=_wait,
        stop=lambda state: _is_over(state, policy, deadline),
        reraise=True,
    )

    async def attempt_now() -> T:
        return await attempt(_left(deadline))

    started = time.monotonic()
    try:
        return await retrying(attempt_now)
    except grpc.aio.AioRpcError as error:
        if not is_broken_connection(error):
            raise from_rpc_error(error) from error
        through = f" (through the proxy {policy.proxy})" if policy.proxy else ""
        raise Unavailable(f"no answer for {time.monotonic() - started:.1f} s{through}: {error.details()}") from error


async def follow(
    stub: Any,
    start: images_pb2.GenerateRequest | images_pb2.WatchRequest,
    policy: RetryPolicy,
    deadline: float | None,
    metadata: Metadata = (),
) -> AsyncGenerator[images_pb2.GenerateEvent, None]:
    """Every event of a job, each once and in order, to its terminal one; none where that was seen before `start`.

    Starts a job from a GenerateRequest, or goes on with one from a WatchRequest. Until the job's id is known, the same
    request is sent again: its request_id makes it the same job. From then on Watch goes on after the last event seen.
    `metadata` goes with every call.
    """
    request, last = start, start.after_sequence if isinstance(start, images_pb2.WatchRequest) else 0
    while True:
        call = await persist(lambda left, request=request: _attach(stub, request, left, metadata), policy, deadline)  # type: ignore[misc]
        seen_before = last
        try:
            async for event in call:
                if event.sequence <= last:
                    continue
                last = event.sequence
                request = images_pb2.WatchRequest(
                    job_id=event.job_id, after_sequence=last, results_only=start.results_only
                )
                yield event
                if event.WhichOneof("event") in _TERMINAL:
                    return
        except grpc.aio.AioRpcError as error:
            if not is_broken_connection(error):
                raise from_rpc_error(error) from error
        else:
            if last == seen_before:
                return  # a stream ends OK with its job alone: the last event was the terminal one
        finally:
            call.cancel()


async def _attach(
    stub: Any, request: images_pb2.GenerateRequest | images_pb2.WatchRequest, left: float | None, metadata: Metadata
) -> Any:
    """An open stream that the server has answered: it sends its initial metadata once the job is accepted or found."""
    method = stub.Generate if isinstance(request, images_pb2.GenerateRequest) else stub.Watch
    call = method(request, timeout=left, metadata=metadata)
    try:
        await call.wait_for_connection()
    except BaseException:
        call.cancel()
        raise
    return call


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _is_full(error: BaseException, policy: RetryPolicy) -> bool:
    return policy.wait_when_full and _retry_after_s(error) > 0


def _retry_after_s(error: BaseException | None) -> float:
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        answered: SynerDiffError = from_rpc_error(error)
        return answered.retry_after_s if isinstance(answered, QueueFull) else 0.0
    return 0.0


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_BACK_OFF(state), _retry_after_s(error))


def _is_over(state: RetryCallState, policy: RetryPolicy, deadline: float | None) -> bool:
    if deadline is not None and time.monotonic() + state.upcoming_sleep >= deadline:
        return True
    error = state.outcome.exception() if state.outcome else None
    if error is not None and _is_full(error, policy):
        return False
    return (state.seconds_since_start or 0.0) + state.upcoming_sleep >= policy.patience_s
