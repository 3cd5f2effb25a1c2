"""An OTLP/gRPC collector for tests: a real server on a real port that keeps what it is sent."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.waiting import until


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Spans by arrival, and the resource that each came from."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resources: list[dict[str, Any]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def Export(self, request: Any, context: Any) -> Any:
        for of_resource in request.resource_spans:
            for scope in of_resource.scope_spans:
                self.spans += scope.spans
                self.resources += [attributes(of_resource.resource)] * len(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[trace_pb2.Span]:
        return [span for span in self.spans if span.name == name]

    async def until(self, enough: Callable[["Collector"], object]) -> None:
        """Return once what has come is enough."""
        try:
            await until(lambda: enough(self))
        except AssertionError:
            raise AssertionError(f"only these came: {Counter(span.name for span in self.spans)}") from None


def attributes(message: Any) -> dict[str, Any]:
    """A span's or a resource's attributes."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in message.attributes}
