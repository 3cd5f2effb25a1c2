"""A request through real schedulers, Redis and simulated workers is one connected trace, whoever leads meanwhile."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis

from services.scheduler.telemetry.job_traces import TICKS_APART
from synerdiff.client import AsyncClient, Progress
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from tests.collector import Collector, attributes
from tests.waiting import HANG_S

STAGES = {"queue", "encode", "denoise", "decode", "store", "deliver"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def schedulers(
    redis: Redis, redis_server: RedisProcess, collector: Collector
) -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """Two scheduler processes by address, with simulated workers of one domain."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    python = [sys.executable, "-m"]
    flags = ["--redis-url", redis_server.url, "--otlp-endpoint", collector.endpoint]
    processes = {
        address: subprocess.Popen(
            [*python, "services.scheduler", "--listen", address, *flags, "--log-level", "warning"]
        )
        for address in addresses
    }
    workers = subprocess.Popen(
        [*python, "bench.simulated_workers", "--redis-url", redis_server.url, "--tick-ms", "10"],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield processes
    finally:
        for process in (*processes.values(), workers):
            process.kill()
            process.wait()


async def leader_of(addresses: list[str]) -> str:
    """The address of the scheduler that leads, once its workers are there."""
    while True:
        for address in addresses:
            async with open_channel(address) as channel:
                with contextlib.suppress(Exception):
                    status = await operations_pb2_grpc.OperationsStub(channel).GetStatus(
                        operations_pb2.GetStatusRequest(), timeout=1
                    )
                    if status.leader and sum(worker.attached for worker in status.workers) == 2:
                        return address
        await asyncio.sleep(0.1)


def check_tree(spans: list[trace_pb2.Span]) -> Counter[str]:
    """Every span's parent is there, but the client's own. Returns how many there are of each name."""
    ids = {span.span_id for span in spans}
    orphans = [span.name for span in spans if span.parent_span_id not in ids]
    assert orphans == ["accept"]
    (job,) = [span for span in spans if span.name == "job"]
    assert {span.name for span in spans if span.parent_span_id == job.span_id} == STAGES
    return Counter(span.name for span in spans)


def check_one_that_began_here(collector: Collector, job_id: str) -> None:
    """A trace whose client did not trace: the ratio decided, and the request's acceptance is its root."""
    (accept,) = (span for span in collector.named("accept") if attributes(span)["synerdiff.job_id"] == job_id)
    assert accept.parent_span_id == b""
    spans = [span for span in collector.spans if span.trace_id == accept.trace_id]
    check_tree(spans)


async def test_one_trace_from_client_to_picture_and_over_a_change_of_leader(
    schedulers: dict[str, "subprocess.Popen[bytes]"], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(mine))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    leading = await leader_of(list(schedulers))
    (other,) = set(schedulers) - {leading}
    async with AsyncClient(other, patience_s=HANG_S) as client:
        with provider.get_tracer("application").start_as_current_span("page"):
            await client.generate("a car", num_inference_steps=20, num_images=2)
            async for event in client.stream("a car", num_inference_steps=400, num_images=2):
                if isinstance(event, Progress) and event.step > 30 and schedulers[leading].poll() is None:
                    # Of both jobs: what is not exported yet, a scheduler that is killed takes with it.
                    await collector.until(lambda c: len(c.named("queue")) == len(c.named("encode")) == 4)
                    os.kill(schedulers[leading].pid, signal.SIGKILL)
                    schedulers[leading].wait()
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "opentelemetry.trace")
            untraced = await client.generate("a car", num_inference_steps=3)
    await collector.until(lambda c: len(c.named("job")) == 3 and len(c.named("deliver")) == 5)
    check_one_that_began_here(collector, untraced.job_id)

    first, second, page = (span for span in mine.get_finished_spans() if span.context)
    assert first.parent == page.context
    trace_id = page.context.trace_id
    spans = [span for span in collector.spans if int.from_bytes(span.trace_id) == trace_id]
    by_job = [
        [
            span
            for span in spans
            if span.span_id in (job.span_id, job.parent_span_id) or span.parent_span_id == job.span_id
        ]
        for job in spans
        if job.name == "job"
    ]
    undisturbed, led_twice = sorted(by_job, key=lambda of_job: min(span.start_time_unix_nano for span in of_job))
    counts = check_tree(undisturbed)
    assert counts == {"accept": 1, "job": 1} | dict.fromkeys(STAGES, 2)
    check_tree(led_twice)
    accepted = {span.parent_span_id for span in spans if span.name == "accept"}
    assert accepted == {span.context.span_id.to_bytes(8) for span in (first, second)}
    instances = {
        resource["service.instance.id"]
        for span, resource in zip(collector.spans, collector.resources, strict=True)
        if span in led_twice
    }
    assert len(instances) == 2
    assert any(attributes(span).get("synerdiff.taken_over") for span in led_twice)

    (denoise, _) = [span for span in undisturbed if span.name == "denoise"]
    told = attributes(denoise)
    assert told["synerdiff.steps"] == 20
    assert 2 < told["synerdiff.mean_batch_rows"] <= 4
    assert told["synerdiff.worker"].startswith("unet-")
    ticks = {span.span_id: span for span in collector.named("unet tick")}
    linked = [ticks[link.span_id] for link in denoise.links]
    assert 20 // TICKS_APART <= len(linked) <= 20 // TICKS_APART + 1
    assert all(denoise.span_id in {link.span_id for link in tick.links} for tick in linked)
    assert len({tick.trace_id for tick in linked} | {trace_id.to_bytes(16)}) == len(linked) + 1
