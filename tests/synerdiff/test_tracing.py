"""Contexts, what goes to a collector, and that nothing is loaded where none is asked for."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from synerdiff.otlp import MissingTracing, start_tracing
from synerdiff.tracing import Span, TraceContext, Tracer, Value, context_of_call, named_trace, parse_traceparent
from tests.collector import Collector, attributes
from tests.waiting import HANG_S, wait_until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def test_a_traceparent_is_read_and_written() -> None:
    context = parse_traceparent(PARENT)
    assert context == TraceContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)
    assert context.traceparent == PARENT
    assert context_of_call((("user-agent", "x"), ("traceparent", PARENT))) == context
    assert parse_traceparent(PARENT[:-2] + "00") == context._replace(sampled=False)
    assert parse_traceparent("cc" + PARENT[2:] + "-later") == context


@pytest.mark.parametrize(
    "text",
    ["", "junk", PARENT.upper(), "ff" + PARENT[2:], PARENT[:-1], PARENT.replace("b7ad6b7169203331", "0" * 16), b"\xff"],
)
def test_what_is_no_traceparent_is_ignored(text: str | bytes) -> None:
    assert parse_traceparent(text) is None


def test_names_make_the_same_span_anywhere() -> None:
    context = TraceContext(7, 8)
    assert context.named("job", "a") == context.child().named("job", "a")
    assert context.named("job", "a") != context.named("job", "b")
    assert named_trace(1, "gpu", 2) == named_trace(1, "gpu", 2) != named_trace(2, "gpu", 2)


def test_the_client_decides_and_else_the_ratio_does() -> None:
    seldom, always = Tracer(print, ratio=0.0), Tracer(print)
    assert not seldom.wants(seldom.begin(None))
    assert always.wants(always.begin(None))
    parent = parse_traceparent(PARENT)
    assert seldom.wants(seldom.begin(parent))
    assert parent
    assert not always.wants(always.begin(parent._replace(sampled=False)))
    half = Tracer(print, ratio=0.5)
    assert 350 < sum(half.wants(half.begin(None)) for _ in range(1000)) < 650


def test_without_a_collector_the_clients_context_is_handed_on_and_nothing_recorded() -> None:
    tracer, parent = start_tracing("", 1.0, {}), parse_traceparent(PARENT)
    assert tracer.begin(parent) == parent
    assert tracer.begin(None) is None
    assert not tracer.wants(parent)


def test_spans_reach_a_collector_with_all_they_say(collector: Collector) -> None:
    tracer = start_tracing(collector.endpoint, 1.0, {"service.name": "a service"})
    parent = TraceContext(1, 2)
    values: dict[str, Value] = {"text": "t", "count": 3, "share": 0.5, "yes": True}
    tracer.record(Span("work", TraceContext(1, 3), parent, 10, 20, values, [TraceContext(4, 5)], "SERVER", "broke"))
    tracer.record(Span("root", TraceContext(1, 2), None, 30, 25))
    tracer.close()
    (work,), (root,) = collector.named("work"), collector.named("root")
    assert (int.from_bytes(work.trace_id), int.from_bytes(work.span_id), int.from_bytes(work.parent_span_id)) == (
        1,
        3,
        2,
    )
    assert (work.start_time_unix_nano, work.end_time_unix_nano, attributes(work)) == (10, 20, values)
    assert [(int.from_bytes(link.trace_id), int.from_bytes(link.span_id)) for link in work.links] == [(4, 5)]
    assert (work.kind, work.status.code, work.status.message) == (2, 2, "broke")
    assert (root.parent_span_id, root.end_time_unix_nano, root.status.code) == (b"", 30, 0)
    assert collector.resources[0]["service.name"] == "a service"


def test_a_collector_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Event(), threading.Event()

    def export(exporter: OTLPSpanExporter, spans: Sequence[object]) -> SpanExportResult:
        asked.set()
        assert answers.wait(HANG_S)
        return SpanExportResult.FAILURE

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    monkeypatch.setattr("synerdiff.otlp.CLOSE_S", 0.3)
    tracer = start_tracing("http://127.0.0.1:1", 1.0, {})
    for _ in range(2000):
        tracer.record(Span("lost", TraceContext(1, 2), None, 1, 2))
    assert asked.wait(HANG_S)
    tracer.close()
    # Nothing has answered so far: neither recording nor closing has waited for it.
    assert "close-tracing" in threads()
    answers.set()
    wait_until(lambda: not {"close-tracing", "OtelBatchSpanRecordProcessor"} & threads())


def threads() -> set[str]:
    """The names of those that run."""
    return {thread.name for thread in threading.enumerate()}


def test_a_missing_sdk_is_said_in_one_line_and_ends_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingTracing, match=r"pip install 'synerdiff\[tracing\]'"):
        start_tracing("http://127.0.0.1:4317", 1.0, {})
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from services.scheduler.process import main\n"
        "sys.exit(main(['--otlp-endpoint', 'http://127.0.0.1:4317']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'synerdiff[tracing]'" in line


def test_nothing_that_sends_traces_is_loaded_where_no_collector_is_asked_for() -> None:
    """The client of Redis loads other parts of OpenTelemetry where they are installed."""
    code = (
        "import sys, synerdiff.client\n"
        "assert 'opentelemetry.trace' not in sys.modules\n"
        "import services.scheduler.process\n"
        "from synerdiff.otlp import start_tracing\n"
        "start_tracing('', 1.0, {})\n"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'opentelemetry.proto')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout.strip() == "[]"
