"""One log line and one count for every job's end, by any process.

The script in Redis that ends a job keeps its end until a scheduler has logged it, so a change of leader or a lost
reply hides none. A scheduler that dies between its line and the acknowledgement leaves a second line to another.
"""

import time

from services.scheduler.store.records import JobEnd
from services.scheduler.store.sweeps import BATCH, Sweeps
from services.scheduler.telemetry.metrics import PoolMetrics
from services.scheduler.telemetry.request_traces import trace_id
from synerdiff.jobs import JobRecord
from synerdiff.status import code_name
from synerdiff.telemetry import get_logger

log = get_logger("jobs")


async def tell_ended(store: Sweeps) -> None:
    """Log and count all ended jobs that were not logged. Raises the errors of the store."""
    metrics = PoolMetrics.of_process()
    full = True
    while full:
        ends = await store.take_ended()
        for end in ends.values():
            code = code_name(end.code)
            metrics.jobs.labels(end.outcome, code).inc()
            metrics.latency.labels(end.outcome).observe(max(0, end.total_ms) / 1000)
            log.info("ended", **_fields(end), code=code, **trace_id(end.traceparent))
        if ends:
            await store.ended_told(ends)
        full = len(ends) == BATCH


def tell_lost(job_id: str, record: JobRecord | None = None) -> None:
    """Log and count a job whose record Redis has lost. `record`: as its leader has it."""
    about: dict[str, object] = {}
    if record:
        about = {"request_id": record.request.request_id, "caller": record.caller, "model": record.request.model}
        about |= {"total_ms": time.time_ns() // 1_000_000 - record.accepted_at_ms, **trace_id(record.traceparent)}
    PoolMetrics.of_process().jobs.labels("lost", "NOT_FOUND").inc()
    log.error("ended", job_id=job_id, outcome="lost", code="NOT_FOUND", reason="Redis has lost its record", **about)


def _fields(end: JobEnd) -> dict[str, object]:
    names = ("job_id", "request_id", "caller", "model", "outcome", "reason", "images")
    times = ("waited_ms", "denoised_ms", "decoded_ms", "total_ms")
    return {name: getattr(end, name) for name in (*names, *times)} | {"workers": list(end.workers)}
