"""The client's own span of a request, where the application uses OpenTelemetry; else nothing is loaded."""

import contextlib
import sys
from collections.abc import Iterator

from synerdiff.tracing import INSTRUMENTATION
from synerdiff.v1 import images_pb2

Metadata = tuple[tuple[str, str], ...]

_SERVICE = "synerdiff.v1.ImageGeneration"


@contextlib.contextmanager
def client_span(method: str, request: images_pb2.GenerateRequest) -> Iterator[Metadata]:
    """A span around making a job, below the application's current one. Yields the metadata that hands its trace on.

    It is never made the current one: the body may be a generator, whose caller would find it in its own context.
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
