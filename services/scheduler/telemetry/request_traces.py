"""The public API's spans in a request's trace: its acceptance, and the delivery of its pictures."""

from collections.abc import Iterable
from typing import Any

from synerdiff.tracing import Span, TraceContext, Tracer, Value, context_of_call, now_ns, parse_traceparent


class RequestTrace:
    """One call that makes a job. `context`: stored with the job, for its spans; None without tracing."""

    def __init__(self, tracer: Tracer, method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        self._tracer = tracer
        self._method = method
        self._client = context_of_call(metadata)
        self._began_ns = now_ns()
        self.context = tracer.begin(self._client)

    @property
    def traceparent(self) -> str:
        """The context as it is stored; empty where there is none."""
        return self.context.traceparent if self.context else ""

    @property
    def log_fields(self) -> dict[str, str]:
        """The trace's fields in log lines."""
        return {"trace_id": self.context.trace_hex} if self.context else {}

    def accepted(self, job_id: str, request_id: str, created: bool) -> None:
        """The request is a durable job now."""
        self._record({"synerdiff.job_id": job_id, "synerdiff.request_id": request_id, "synerdiff.created": created})

    def refused(self, message: str) -> None:
        """The request was not accepted."""
        self._record({}, message)

    def _record(self, attributes: dict[str, Value], error: str = "") -> None:
        if self.context is None or not self._tracer.wants(self.context):
            return
        rpc: dict[str, Value] = {"rpc.system": "grpc", "rpc.method": self._method}
        span = Span(
            "accept", self.context, self._client, self._began_ns, now_ns(), rpc | attributes, kind="SERVER", error=error
        )
        self._tracer.record(span)


class Deliveries:
    """The pictures of one job on their way to one follower."""

    def __init__(self, tracer: Tracer, job_id: str, traceparent: str) -> None:
        context = parse_traceparent(traceparent)
        self._tracer = tracer
        self._job = job_context(context, job_id) if context and tracer.wants(context) else None

    def delivered(self, event: Any, began_ns: int) -> None:
        """An event has been written to the follower's connection."""
        if self._job is None or not event.HasField("image"):
            return
        attributes: dict[str, Value] = {"synerdiff.image": event.image.index, "synerdiff.bytes": len(event.image.data)}
        self._tracer.record(Span("deliver", self._job.child(), self._job, began_ns, now_ns(), attributes))


def job_context(stored: TraceContext, job_id: str) -> TraceContext:
    """The context of a job's own span: every leader and every scheduler finds the same one."""
    return stored.named("job", job_id)


def trace_id(traceparent: str) -> dict[str, str]:
    """The trace's fields in a log line about a job."""
    context = parse_traceparent(traceparent)
    return {"trace_id": context.trace_hex} if context else {}
