"""One deployment, every process for real: load, cancellation, abandonment, time-outs, previews, priorities, deaths."""

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from bench.load import largest_differences, send_all
from bench.mixed_requests import mixed_requests
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.results import Finished, GenerateResult, Progress, Started
from synerdiff.errors import Cancelled, DeadlineExceeded, NotFound
from synerdiff.jobs import JobState
from synerdiff.redis_client import connect
from tests.end_to_end.command import Up, processes
from tests.end_to_end.conftest import ABANDONMENT_S
from tests.rounding import A_LEVEL
from tests.waiting import HANG_S

LONG = 900  # steps of a job that is still running when a test has seen enough of it
REQUESTS = mixed_requests(12, seed=5)

pytestmark = pytest.mark.usefixtures("all_slots_end_free")


def pixels(result: GenerateResult) -> npt.NDArray[np.int64]:
    return np.asarray(result.image.pil.convert("RGB")).astype(np.int64)


async def steps_done(client: AsyncClient, job_id: str, least: int) -> None:
    """Return once an image of the job has at least so many steps behind it."""
    async for event in client.watch(job_id):
        if isinstance(event, Progress) and event.step >= least:
            return


async def test_every_picture_under_load_is_the_one_made_alone(up: Up) -> None:
    window = await send_all(up.addresses[1], REQUESTS, clients=8)
    assert len(window.served) == len(REQUESTS), window.answers
    assert max(largest_differences(REQUESTS, window.served)) <= A_LEVEL


async def test_a_cancelled_job_ends_at_once_and_frees_its_slots(up: Up, client: AsyncClient) -> None:
    async with AsyncClient(up.addresses[1]) as other:
        job = await client.submit("a car", num_inference_steps=LONG, num_images=3)
        await steps_done(client, job.job_id, 2)
        assert (await other.cancel(job.job_id)).state is JobState.CANCELLED
        with pytest.raises(Cancelled):
            await job.result()


async def test_a_job_that_nobody_follows_is_given_up_and_a_submitted_one_is_not(client: AsyncClient) -> None:
    kept = await client.submit("a car", num_inference_steps=60)
    events = client.stream("a car", num_inference_steps=LONG)
    async with contextlib.aclosing(events):
        abandoned = await anext(event.job_id async for event in events if isinstance(event, Started))
    await asyncio.sleep(ABANDONMENT_S / 2)
    assert (await client.job(abandoned)).state is JobState.RUNNING
    async with asyncio.timeout(HANG_S):
        while (await client.job(abandoned)).state is not JobState.CANCELLED:
            await asyncio.sleep(0.1)
    assert len((await kept.result()).images) == 1


async def test_a_timeout_ends_a_running_job(client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded, match="timeout"):
        await client.generate("a car", num_inference_steps=LONG, timeout=1.0)


async def test_previews_warnings_and_counts_come_with_the_events(client: AsyncClient) -> None:
    beyond = " ".join(["very"] * 40) + " red car"
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


async def test_a_redis_that_comes_back_empty_is_served_on(up: Up, client: AsyncClient) -> None:
    async with connect(up.redis_url()) as redis:
        before = await client.generate("a car", seed=3, num_inference_steps=4)
        running = await client.submit("a car", num_inference_steps=LONG)
        await steps_done(client, running.job_id, 2)
        await redis.flushall()
        after = await asyncio.wait_for(client.generate("a car", seed=3, num_inference_steps=4), HANG_S)
        assert np.abs(pixels(after) - pixels(before)).max() <= A_LEVEL
        with pytest.raises(NotFound):
            await running.status()


async def test_an_urgent_job_overtakes_those_that_wait(client: AsyncClient) -> None:
    crowd = [await client.submit("a car", num_inference_steps=30, priority="low") for _ in range(30)]
    urgent = await client.submit("a rocket", num_inference_steps=3, priority="high")
    await urgent.result()
    states = [(await job.status()).state for job in crowd]
    assert JobState.QUEUED in states
    await asyncio.gather(*(job.cancel() for job in crowd))


async def test_pictures_under_way_are_made_again_with_the_same_guidance_skipped_when_their_worker_dies(
    up: Up, client: AsyncClient
) -> None:

    async def picture(seed: int, skip_cfg: Sequence[int] | None) -> GenerateResult:
        return await client.generate(
            "a red car", num_inference_steps=20, guidance_scale=5.0, seed=seed, skip_cfg=skip_cfg
        )

    skipping = asyncio.gather(*(picture(seed, None) for seed in range(8)))
    await load_with_a_death(up, "unet")
    results = await skipping
    assert sum(bool(result.skipped_steps) for result in results) >= 4
    for seed, result in enumerate(results[:2]):
        steps = result.skipped_steps.get(0, ())
        again = await picture(seed, steps)
        assert again.skipped_steps == result.skipped_steps
        assert np.abs(pixels(again) - pixels(result)).max() <= A_LEVEL


@pytest.mark.parametrize("victim", ["scheduler", "redis"])  # for workers see above and test_deaths
async def test_a_death_under_load_costs_time_and_nothing_else(up: Up, victim: str) -> None:
    await load_with_a_death(up, victim)


async def load_with_a_death(up: Up, victim: str) -> None:
    """Send requests whose references are known already, and kill a process under them: all get their pictures."""
    sending = asyncio.create_task(send_all(up.addresses[0], REQUESTS[:8], clients=8))
    await asyncio.sleep(0.8)
    assert not sending.done()
    ((name, pid),) = up.kill(victim).items()
    window = await sending
    assert len(window.served) == 8, f"{name} was killed: {window.answers}"
    assert max(largest_differences(REQUESTS, window.served)) <= A_LEVEL
    assert f"{name} died and is started again" in up.said()
    assert pid not in processes(up.home)
