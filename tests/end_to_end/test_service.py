"""One deployment, every process for real: load, cancellation, abandonment, time-outs, previews, priorities, deaths."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from bench.load import largest_difference, mixed_requests, send_all, slots_used
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.results import Finished, GenerateResult, Progress, Started
from synerdiff.errors import Cancelled, DeadlineExceeded
from synerdiff.jobs import JobState
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource
from synerdiff_cli.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LONG = 900  # steps of a job that is still running when a test has seen enough of it
PATIENCE_S = 90.0  # workers take a while to come back
ABANDONMENT_S = 8  # longer than a scheduler that was killed takes to come back, and its clients to find it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    options = LocalOptions(
        tmp_path_factory.mktemp("deployment"),
        (ModelSource("emoji", BUNDLED_MODEL),),
        dtype="float32",
        schedulers=2,
    )
    os.environ["SYNERDIFF_ABANDONMENT_S"] = str(ABANDONMENT_S)
    try:
        async with running(options) as deployment:
            yield deployment
    finally:
        del os.environ["SYNERDIFF_ABANDONMENT_S"]


def client_of(deployed: Running, scheduler: int = 0) -> AsyncClient:
    return AsyncClient(deployed.deployment.addresses[scheduler], patience_s=PATIENCE_S)


async def used(deployed: Running) -> int:
    return await slots_used(deployed.deployment.addresses)


def pixels(result: GenerateResult) -> npt.NDArray[np.int64]:
    return np.asarray(result.image.pil.convert("RGB")).astype(np.int64)


async def steps_done(client: AsyncClient, job_id: str, least: int) -> None:
    """Return once an image of the job has at least so many steps behind it."""
    async for event in client.watch(job_id):
        if isinstance(event, Progress) and event.step >= least:
            return


async def test_every_picture_under_load_is_the_one_made_alone(deployed: Running) -> None:
    requests = mixed_requests(16, seed=5)
    answers, errors, _ = await send_all(deployed.deployment.addresses[1], requests, clients=8)
    assert not errors
    assert len(answers) == len(requests)
    assert max([largest_difference(*answer) for answer in answers]) <= 2
    assert await used(deployed) == 0


async def test_a_cancelled_job_ends_at_once_and_frees_its_slots(deployed: Running) -> None:
    async with client_of(deployed) as client, client_of(deployed, 1) as other:
        job = await client.submit("a car", num_inference_steps=LONG, num_images=3)
        await steps_done(client, job.job_id, 2)
        assert (await other.cancel(job.job_id)).state is JobState.CANCELLED
        with pytest.raises(Cancelled):
            await job.result()
    assert await used(deployed) == 0


async def test_a_job_that_nobody_follows_is_given_up_and_a_submitted_one_is_not(deployed: Running) -> None:
    async with client_of(deployed) as client:
        kept = await client.submit("a car", num_inference_steps=60)
        events = client.stream("a car", num_inference_steps=LONG)
        async with contextlib.aclosing(events):
            abandoned = await anext(event.job_id async for event in events if isinstance(event, Started))
        await asyncio.sleep(ABANDONMENT_S / 2)
        assert (await client.job(abandoned)).state is JobState.RUNNING
        await asyncio.sleep(ABANDONMENT_S / 2 + 2)
        assert (await client.job(abandoned)).state is JobState.CANCELLED
        assert len((await kept.result()).images) == 1
    assert await used(deployed) == 0


async def test_a_timeout_ends_a_running_job(deployed: Running) -> None:
    async with client_of(deployed) as client:
        with pytest.raises(DeadlineExceeded, match="timeout"):
            await client.generate("a car", num_inference_steps=LONG, timeout=1.0)
    assert await used(deployed) == 0


async def test_previews_warnings_and_counts_come_with_the_events(deployed: Running) -> None:
    beyond = " ".join(["very"] * 40) + " red car"
    async with client_of(deployed) as client:
        events = [
            event
            async for event in client.stream(
                beyond, num_inference_steps=24, preview_every=2, sampler=Sampler.HEUN, image_format="webp"
            )
        ]
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.num_inference_steps for event in progress} == {47}
    previews = [event.preview for event in progress if event.preview]
    assert previews
    assert previews[-1].size == (16, 16)
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert "red car" in " ".join(finished.warnings)
    assert finished.timings.denoise_s > 0


async def test_an_urgent_job_overtakes_those_that_wait(deployed: Running) -> None:
    async with client_of(deployed) as client:
        crowd = [await client.submit("a car", num_inference_steps=30, priority="low") for _ in range(30)]
        urgent = await client.submit("a rocket", num_inference_steps=3, priority="high")
        await urgent.result()
        states = [(await job.status()).state for job in crowd]
        assert JobState.QUEUED in states
        await asyncio.gather(*(job.cancel() for job in crowd))
    assert await used(deployed) == 0


async def test_guidance_that_was_skipped_is_told_and_skipped_again_after_a_death(deployed: Running) -> None:
    async with client_of(deployed) as client:

        async def picture(seed: int, skip_cfg: Sequence[int] | None) -> GenerateResult:
            return await client.generate(
                "a red car", num_inference_steps=24, guidance_scale=5.0, seed=seed, skip_cfg=skip_cfg
            )

        sending = [asyncio.create_task(picture(seed, None)) for seed in range(10)]
        await asyncio.sleep(2.0)
        (pid,) = [pid for name, pid in deployed.supervisor.pids().items() if name.startswith("unet")]
        os.kill(pid, signal.SIGKILL)
        results = await asyncio.gather(*sending)
        assert sum(bool(result.skipped_steps) for result in results) >= 5
        for seed, result in enumerate(results[:2]):
            steps = result.skipped_steps.get(0, ())
            again = await picture(seed, steps)
            assert again.skipped_steps == result.skipped_steps
            assert np.abs(pixels(again) - pixels(result)).max() <= 2
    assert await used(deployed) == 0


@pytest.mark.parametrize("victim", ["unet", "vae", "scheduler", "redis"])
async def test_a_death_under_load_costs_time_and_nothing_else(deployed: Running, victim: str) -> None:
    requests = mixed_requests(8, seed=11)
    sending = asyncio.create_task(send_all(deployed.deployment.addresses[0], requests, clients=8))
    await asyncio.sleep(0.8)
    (name, pid), *_ = [(name, pid) for name, pid in deployed.supervisor.pids().items() if name.startswith(victim)]
    assert not sending.done()
    os.kill(pid, signal.SIGKILL)
    answers, errors, _ = await sending
    assert not errors, f"{name} was killed"
    assert len(answers) == len(requests)
    assert max([largest_difference(*answer) for answer in answers]) <= 2
    assert await used(deployed) == 0
