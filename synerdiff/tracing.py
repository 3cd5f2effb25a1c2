"""Traces: spans as plain values, made after the fact with explicit times, and sent to an OTLP collector if one is set.

Nothing here imports OpenTelemetry: `otlp` does, which sends them. Contexts travel between processes as W3C traceparent.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

TRACEPARENT = "traceparent"
INSTRUMENTATION = "synerdiff"

Value = str | int | float | bool
SpanKind = Literal["INTERNAL", "SERVER"]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")

now_ns = time.time_ns


class TraceContext(NamedTuple):
    """A span's place in its trace. `sampled`: whether the trace is recorded, as its first process decided."""

    trace_id: int
    span_id: int
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The W3C header."""
        return f"00-{self.trace_hex}-{self.span_id:016x}-{self.sampled:02x}"

    @property
    def trace_hex(self) -> str:
        """The trace's id as logs and backends write it."""
        return f"{self.trace_id:032x}"

    def named(self, *names: object) -> "TraceContext":
        """A span of this trace whose id follows from its names, and so is the same in every process."""
        return TraceContext(self.trace_id, _digest(8, *names), self.sampled)

    def child(self) -> "TraceContext":
        """A new span of this trace."""
        return TraceContext(self.trace_id, random.getrandbits(64) or 1, self.sampled)


def named_trace(*names: object) -> TraceContext:
    """The first span of a trace, both ids of which follow from its names."""
    drawn = _digest(24, *names)
    return TraceContext(drawn >> 64 or 1, drawn % 2**64 or 1)


def _digest(size: int, *names: object) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, names)).encode(), digest_size=size).digest(), "big") or 1


def parse_traceparent(text: str | bytes | None) -> TraceContext | None:
    """The context of a W3C traceparent; None for a malformed one, which is ignored as the standard asks."""
    match = _TRACEPARENT.fullmatch(text.decode("ascii", "replace") if isinstance(text, bytes) else text or "")
    if match is None:
        return None
    trace_id, span_id = int(match[1], 16), int(match[2], 16)
    return TraceContext(trace_id, span_id, bool(int(match[3], 16) & 1)) if trace_id and span_id else None


def context_of_call(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """The context that a gRPC call brings in its metadata."""
    return next((parse_traceparent(value) for key, value in metadata or () if key == TRACEPARENT), None)


class Span(NamedTuple):
    """One span that has ended. Times are Unix ns. `error`: its error, empty without one."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = MappingProxyType({})
    links: Sequence[TraceContext] = ()
    kind: SpanKind = "INTERNAL"
    error: str = ""


class Tracer:
    """Sends a process's spans; drops them without `send`. `ratio`: of requests traced where no client decided."""

    def __init__(
        self, send: Callable[[Span], None] | None = None, ratio: float = 1.0, close: Callable[[], None] | None = None
    ) -> None:
        self.enabled = send is not None
        self._send = send
        self._bound = round(ratio * 2**64)
        self._close = close

    def begin(self, parent: TraceContext | None) -> TraceContext | None:
        """The context of a request's first span here, in its client's trace or a new one; handed on if none records."""
        if not self.enabled:
            return parent
        if parent is not None:
            return parent.child()
        drawn = random.getrandbits(128) or 1
        return TraceContext(drawn, random.getrandbits(64) or 1, drawn % 2**64 < self._bound)

    def wants(self, context: TraceContext | None) -> bool:
        """Whether spans of this trace are recorded here."""
        return self.enabled and context is not None and context.sampled

    def record(self, span: Span) -> None:
        """Have a span sent. Never blocks: spans that the collector does not take in time are dropped."""
        if self._send is not None:
            self._send(span)

    def close(self) -> None:
        """Send the remaining spans, for at most a few seconds."""
        if self._close is not None:
            self._close()


def unix_ns(unix_ms: int) -> int:
    """Unix ms, as jobs carry their times, in ns."""
    return unix_ms * 1_000_000
