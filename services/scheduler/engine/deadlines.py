"""The clock ends jobs whose deadline has passed, and jobs whose weights nobody serves any more."""

import grpc

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Job, Phase

_FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]

# Digests by kind of worker, UNet or VAE, and model.
_HeldWeights = dict[tuple[str, str], set[str]]


def fail_late_jobs(holdings: Holdings, now_ms: int) -> None:
    """End the jobs whose deadline has passed."""
    late = [job.record for job in holdings.jobs.values() if job.record.deadline_ms <= now_ms]
    for record in late:
        seconds = record.request.timeout_ms / 1000
        holdings.fail(record.job_id, _DEADLINE_EXCEEDED, f"timeout: the request's {seconds:g} s ran out")


def fail_jobs_of_other_weights(holdings: Holdings, now_ms: int, wait_s: float) -> None:
    """End the jobs whose weights nobody has served for `wait_s`, though others of the same model are served."""
    held = _held_weights(holdings)
    for job in list(holdings.jobs.values()):
        lacking = _lacking_weights(job, held)
        if not lacking:
            job.lacking_ms = 0
        elif not job.lacking_ms:
            job.lacking_ms = now_ms
        elif now_ms - job.lacking_ms >= wait_s * 1000:
            model = job.record.request.model
            message = f"model {model!r}: accepted for {lacking}; no worker has served those for {wait_s:g} s: ask again"
            holdings.fail(job.record.job_id, _FAILED_PRECONDITION, message)


def _held_weights(holdings: Holdings) -> _HeldWeights:
    """The digests that workers which take new work hold."""
    held: _HeldWeights = {}
    for kind, lanes in (("UNet", holdings.unet.values()), ("VAE", holdings.vae.values())):
        for lane in lanes:
            if not lane.draining:
                held.setdefault((kind, lane.model), set()).add(lane.weights)
    return held


def _lacking_weights(job: Job, held: _HeldWeights) -> str:
    """Which weights the job waits for, in words, while workers hold others of its model alone; empty: none."""
    needed = (("UNet", job.unet_weights, Phase.WAITING), ("VAE", job.vae_weights, Phase.READY_TO_DECODE))
    for kind, wanted, last in needed:
        found = held.get((kind, job.record.request.model))
        if not wanted or not found or found & {wanted, ""}:
            continue
        if any(task.phase.value <= last.value for task in job.tasks):
            others = ", ".join(sorted(digest[:12] for digest in found))
            return f"{kind} weights {wanted[:12]}, and only {others} are served"
    return ""
