"""Arrivals as the job records that the queue would hold."""

from collections.abc import Iterable
from dataclasses import replace

from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.simulation.simulated_workers import MODEL
from services.scheduler.simulation.workloads import Arrival
from synerdiff.cards import Sampler
from synerdiff.jobs import JobRecord, JobState
from synerdiff.requests import ImageFormat, ImageRequest, Priority

KEY = BatchKey(MODEL, 512, 512)
_FOREVER_MS = 10**12


def records(arrivals: Iterable[Arrival]) -> Iterable[tuple[Arrival, JobRecord]]:
    """Every arrival as the job that the queue would hold."""
    common = ImageRequest(
        request_id="",
        model=MODEL,
        prompt="",
        negative_prompt="",
        width=KEY.width,
        height=KEY.height,
        num_inference_steps=1,
        guidance_scale=1.0,
        seed=0,
        sampler=Sampler.DDIM,
        num_images=1,
        image_format=ImageFormat.PNG,
        priority=Priority.NORMAL,
        timeout_ms=_FOREVER_MS,
        preview_every=0,
    )
    for number, arrival in enumerate(arrivals):
        job_id, accepted_ms = f"{number:08d}", int(arrival.at_ms)
        request = replace(
            common,
            request_id=job_id,
            num_inference_steps=arrival.steps,
            guidance_scale=7.5 if arrival.guided else 1.0,
            num_images=arrival.images,
            priority=arrival.priority,
            timeout_ms=round(arrival.timeout_s * 1000) or _FOREVER_MS,
            timed=arrival.timeout_s > 0,
        )
        deadline_ms = accepted_ms + request.timeout_ms
        record = JobRecord(job_id, JobState.QUEUED, request, accepted_ms, deadline_ms, False, caller=arrival.caller)
        yield arrival, record
