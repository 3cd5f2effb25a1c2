"""Spans to an OTLP/gRPC collector, by OpenTelemetry's SDK. That is imported only where traces are sent."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from synerdiff.errors import SynerDiffError
from synerdiff.telemetry import get_logger
from synerdiff.tracing import INSTRUMENTATION, Span, TraceContext, Tracer, Value

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

# A process that is killed takes at most the last second of its spans with it.
EXPORT_EVERY_MS = 1000
QUEUED_SPANS = 16_384
BATCH_SPANS = 512
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 3.0

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK = Status()

log = get_logger("tracing")


class MissingTracing(SynerDiffError):
    """The packages that send traces are not installed; the message says how to get them."""


def start_tracing(endpoint: str, ratio: float, resource: Mapping[str, Value]) -> Tracer:
    """A tracer to the OTLP/gRPC collector at `endpoint` ("http://host:4317"), or to nowhere. Raises MissingTracing."""
    if not endpoint:
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        to_sdk = sdk_spans(resource)
    except ImportError as error:
        raise MissingTracing(
            f"--otlp-endpoint needs OpenTelemetry's SDK ({error.name} is missing); "
            "install it with: pip install 'synerdiff[tracing]'"
        ) from error
    _log_as_the_service_does()
    processor = BatchSpanProcessor(
        OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S),
        max_queue_size=QUEUED_SPANS,
        schedule_delay_millis=EXPORT_EVERY_MS,
        max_export_batch_size=BATCH_SPANS,
    )

    def close() -> None:
        """Export queued spans, and wait at most `CLOSE_S` for a collector that is away."""
        closing = threading.Thread(target=processor.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    return Tracer(lambda span: processor.on_end(to_sdk(span)), ratio, close)


def sdk_spans(resource: Mapping[str, Value]) -> "Callable[[Span], ReadableSpan]":
    """How spans of a process become the SDK's. Raises ImportError."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    of_process, scope = Resource.create(dict(resource)), InstrumentationScope(INSTRUMENTATION)

    def to_sdk(span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(span.context),
            parent=_context(span.parent) if span.parent else None,
            resource=of_process,
            attributes=span.attributes,
            links=[Link(_context(link)) for link in span.links],
            kind=SpanKind[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else _OK,
            start_time=span.start_ns,
            end_time=max(span.start_ns, span.end_ns),
            instrumentation_scope=scope,
        )

    return to_sdk


def _context(context: TraceContext) -> SpanContext:
    return SpanContext(context.trace_id, context.span_id, is_remote=False, trace_flags=_SAMPLED)


class _ServiceLog(logging.Handler):
    """Writes OpenTelemetry's messages about a collector that is away to this service's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it."""
        log.warning("the collector of traces", message=record.getMessage())


def _log_as_the_service_does() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    logger.handlers = [_ServiceLog(logging.WARNING)]
