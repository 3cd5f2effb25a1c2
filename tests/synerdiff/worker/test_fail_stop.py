"""An error that nobody expected ends the worker, once, with a line that names the part."""

import asyncio
import threading
from collections.abc import Callable

import grpc
import pytest
import torch
from structlog.testing import capture_logs

from synerdiff.errors import StaleLeader
from synerdiff.worker.fail_stop import FailStop
from synerdiff.worker.job_thread import JobThread
from tests.waiting import HANG_S


def broken() -> None:
    raise KeyError("ours")


async def in_a_task(failure: FailStop) -> None:
    async def work() -> None:
        broken()

    failure.watch(asyncio.create_task(work()), "the task")


async def in_a_call_from_a_thread(failure: FailStop) -> None:
    threading.Thread(target=failure.on_loop, args=(broken,)).start()


async def in_a_job(failure: FailStop) -> None:
    thread = JobThread("jobs", failure.of("the thread"))
    thread.start()
    thread.submit(broken)
    thread.submit(lambda: pytest.fail("a job was done after one that failed"))
    await asyncio.to_thread(thread.close)


async def under_guard(failure: FailStop) -> None:
    with pytest.raises(KeyError), failure.guarding("the sender"):
        broken()


@pytest.mark.parametrize("where", [in_a_task, in_a_call_from_a_thread, in_a_job, under_guard])
async def test_an_unexpected_error_is_told_once(where: Callable[[FailStop], "asyncio.Future[None]"]) -> None:
    failure = FailStop("tasks")
    with capture_logs() as logs:
        await where(failure)
        await asyncio.wait_for(failure.wait(), HANG_S)
        await where(failure)
    assert isinstance(failure.error, KeyError)
    [told] = [log for log in logs if log["log_level"] == "critical"]
    assert told["event"].endswith("died: this process ends, its tasks run again")


async def test_a_lost_device_is_told_without_a_traceback() -> None:
    failure = FailStop("decodes")
    with capture_logs() as logs:
        failure.of("the device thread")(torch.AcceleratorError("CUDA error: unspecified launch failure"))
        await asyncio.wait_for(failure.wait(), HANG_S)
    [told] = logs
    assert told["event"] == "the device failed: this process ends, its decodes run again"
    assert "launch failure" in told["reason"]


@pytest.mark.parametrize("expected", [StaleLeader("older"), grpc.aio.UsageError("the call has ended")])
async def test_a_refusal_and_the_end_of_a_call_are_no_failures(expected: Exception) -> None:
    failure = FailStop("tasks")
    with pytest.raises(type(expected)), failure.guarding("the sender"):
        raise expected
    ended = asyncio.create_task(asyncio.sleep(HANG_S))
    failure.watch(ended, "a task that is cancelled")
    ended.cancel()
    await asyncio.wait({ended})
    assert failure.error is None
