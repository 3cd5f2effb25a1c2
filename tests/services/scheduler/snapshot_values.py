"""Snapshots for tests of policies: the values that matter named, the others filled in."""

from services.scheduler.policy.snapshots import (
    BatchKey,
    Claim,
    ReadyDecode,
    RunningTask,
    SkipState,
    UnetLane,
    WaitingTask,
)

KEY = BatchKey("a", 128, 128)
OTHER_KEY = BatchKey("a", 256, 128)
FREE_TO_SKIP = SkipState(None, 1.0, 0, 0, 0.0)


def claim(
    job_id: str,
    *,
    image: int = 0,
    priority: int = 2,
    accepted_ms: int = 0,
    deadline_ms: int = 10**9,
    timed: bool = False,
    first_come_ms: float = 1e6,
    tail_ms: float = 1e6,
    caller: str = "",
) -> Claim:
    return Claim(job_id, image, priority, accepted_ms, deadline_ms, timed, first_come_ms, tail_ms, caller)


def running(
    job_id: str,
    *,
    key: BatchKey = KEY,
    rows: int = 2,
    at: int = 0,
    of: int = 20,
    skip: SkipState = FREE_TO_SKIP,
    image: int = 0,
    **claims: float | str,
) -> RunningTask:
    return RunningTask(f"{job_id}/{image}", key, rows, at, of, claim(job_id, image=image, **claims), skip)  # type: ignore[arg-type]


def waiting(
    job_id: str, *, key: BatchKey = KEY, rows: int = 2, of: int = 20, image: int = 0, **claims: float | str
) -> WaitingTask:
    return WaitingTask(f"{job_id}/{image}", key, rows, of, claim(job_id, image=image, **claims))  # type: ignore[arg-type]


def decode(job_id: str, *, key: BatchKey = KEY, domain: str = "d", **claims: float | str) -> ReadyDecode:
    return ReadyDecode(f"{job_id}/0", key, domain, claim(job_id, **claims))  # type: ignore[arg-type]


def unet_lane(*tasks: RunningTask, worker_id: str = "u", slots: int = 32, wants_plan: bool = True) -> UnetLane:
    return UnetLane(worker_id, "d", "a", slots, len(tasks), 0, len(tasks), tasks, wants_plan and bool(tasks))
