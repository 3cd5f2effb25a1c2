"""Cards, workers, requests, tasks and jobs for tests: whole and small; a test names the fields that matter to it."""

from dataclasses import replace
from typing import Any

from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.jobs import JobRecord, JobState
from synerdiff.registry import WorkerKind, WorkerRecord
from synerdiff.requests import ImageFormat, ImageRequest, Priority, TaskSpec

CARD = ModelCard(
    name="emoji",
    family="sd1",
    native_width=256,
    native_height=256,
    size_multiple=64,
    max_side=512,
    default_num_inference_steps=20,
    default_guidance_scale=7.5,
    default_sampler=Sampler.PNDM,
    samplers=(SamplerLimits(Sampler.PNDM, 4, 1000), SamplerLimits(Sampler.LCM, 1, 8)),
    max_prompt_tokens=77,
    prediction_type="epsilon",
)
REQUEST = ImageRequest(
    request_id="",
    model="emoji",
    prompt="ein Stück Pizza 🍕",
    negative_prompt="",
    width=64,
    height=64,
    num_inference_steps=4,
    guidance_scale=7.5,
    seed=2**63 - 2,
    sampler=Sampler.EULER,
    num_images=1,
    image_format=ImageFormat.WEBP,
    priority=Priority.NORMAL,
    timeout_ms=600_000,
    preview_every=2,
)
_SPEC = TaskSpec("job/0", "a slice of pizza", "", 64, 64, 3, 4.0, 7, Sampler.DDIM, preview_every=0)


def a_request(**changes: Any) -> ImageRequest:
    """A request; without `request_id` each acceptance is a job of its own."""
    return replace(REQUEST, **changes)


def a_job(job_id: str = "job", request: ImageRequest = REQUEST, **changes: Any) -> JobRecord:
    """A job that waits, and never runs out of time."""
    record = JobRecord(job_id, JobState.QUEUED, request, accepted_at_ms=0, deadline_ms=1 << 60, abandonable=False)
    return replace(record, **changes)


def spec(task_id: str = "job/0", **changes: Any) -> TaskSpec:
    """A small guided task."""
    return replace(_SPEC, task_id=task_id, **changes)


def a_worker(kind: WorkerKind = "unet", **changes: Any) -> WorkerRecord:
    """A worker as the registry has it."""
    record = WorkerRecord(f"{kind}-0", kind, "127.0.0.1:1", CARD, "default", "cpu:test", boot_id="boot", pid=1)
    return replace(record, **changes)
