"""Quotas of callers over real gRPC and Redis: what is refused, what it says, and when there is room again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.scheduler.api.callers_file import CallersFile, key_hash, read_callers
from services.scheduler.api.gate import Gate, Rates
from services.scheduler.callers import Caller, Quota
from services.scheduler.store import keys
from services.scheduler.telemetry import metrics
from synerdiff.client import AsyncClient
from synerdiff.errors import InvalidRequest, QueueFull
from tests.services.scheduler.harness import Leader, Scheduler, served
from tests.services.scheduler.redis_jobs import new_leader

FILE = f"""
* waiting_jobs=3
alice {key_hash("alice")}
bob {key_hash("bob")} waiting_images=4
carol {key_hash("carol")} waiting_jobs=100 open_images=2
dave {key_hash("dave")} requests_per_s=0.5
"""


@pytest.fixture
async def scheduler(redis: Redis, tmp_path: Path) -> AsyncIterator[Scheduler]:
    path = tmp_path / "callers"
    path.write_text(FILE)
    async with served(redis, check=Gate(CallersFile(path))) as scheduler:
        yield scheduler


def client_of(scheduler: Scheduler, name: str) -> AsyncClient:
    return AsyncClient(scheduler.address, key=name)


async def test_many_at_once_get_exactly_what_is_theirs(scheduler: Scheduler) -> None:
    async with client_of(scheduler, "alice") as alice, client_of(scheduler, "bob") as bob:
        answers = await asyncio.gather(*(alice.submit("a") for _ in range(20)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert len(refused) == 17, answers
        assert refused[0].message == "caller 'alice' has 3 of waiting_jobs=3"
        assert refused[0].retry_after_s > 0
        await bob.submit("b", num_images=3)
        with pytest.raises(QueueFull, match="'bob' has 3 of waiting_images=4, and asks for 2 more"):
            await bob.submit("b", num_images=2)
        await bob.submit("b")


async def test_a_job_that_starts_or_ends_makes_room(scheduler: Scheduler, redis: Redis) -> None:
    leader = await Leader.of(redis, scheduler.store)
    async with client_of(scheduler, "alice") as alice, client_of(scheduler, "carol") as carol:
        waiting = [await alice.submit("a") for _ in range(3)]
        job = await leader.take()
        await alice.submit("a")
        await waiting[1].cancel()
        await alice.submit("a")
        with pytest.raises(QueueFull):
            await alice.submit("a")
        await leader.complete(job)

        await carol.submit("c", num_images=2, priority="high")
        job = await leader.take()
        with pytest.raises(QueueFull, match="open_images=2"):
            await carol.submit("c")
        await leader.complete(job)
        await carol.submit("c", num_images=2)


async def test_lost_counts_are_counted_again(scheduler: Scheduler, redis: Redis) -> None:
    async with client_of(scheduler, "alice") as alice:
        for _ in range(3):
            await alice.submit("a")
        await redis.delete(keys.PATTERNS["callers"])
        with pytest.raises(QueueFull, match="has 3 of"):
            await alice.submit("a")
        await redis.hset(keys.PATTERNS["callers"], "alice waiting_jobs", "2")  # as if another version had ended one
        await new_leader(redis)
        with pytest.raises(QueueFull, match="has 3 of"):
            await alice.submit("a")


async def test_nothing_is_counted_for_those_who_have_nothing(scheduler: Scheduler, redis: Redis) -> None:
    async with client_of(scheduler, "alice") as alice:
        await (await alice.submit("a")).cancel()
    assert await redis.hkeys(keys.PATTERNS["callers"]) == [keys.KEEPER.encode()]


async def test_an_accepted_request_is_answered_again_beyond_every_quota(scheduler: Scheduler) -> None:
    async with client_of(scheduler, "alice") as alice:
        jobs = [await alice.submit("a", request_id=f"r{n}", seed=1) for n in range(3)]
        assert (await alice.submit("a", request_id="r0", seed=1)).job_id == jobs[0].job_id


async def test_what_can_never_be_had_is_no_matter_of_time(scheduler: Scheduler) -> None:
    async with client_of(scheduler, "carol") as carol:
        with pytest.raises(InvalidRequest, match="num_images: 3 is more than caller 'carol' may have: open_images=2"):
            await carol.submit("c", num_images=3)


async def test_requests_a_second_and_the_one_that_comes_when_told(scheduler: Scheduler) -> None:
    async with client_of(scheduler, "dave") as dave:
        await dave.submit("d")
        with pytest.raises(QueueFull, match=r"requests_per_s=0\.5") as refused:
            await dave.submit("d")
        assert 1 < refused.value.retry_after_s <= 2
        await asyncio.sleep(refused.value.retry_after_s)
        await dave.submit("d")


def test_a_bucket_fills_at_its_rate() -> None:
    now_s = 0.0
    rates, caller = Rates(lambda: now_s), Caller("a", quota=Quota(requests_per_s=4))
    for _ in range(4):
        rates.take(caller)
    with pytest.raises(QueueFull) as refused:
        rates.take(caller)
    assert refused.value.retry_after_s == pytest.approx(0.25)
    now_s = 0.25
    rates.take(caller)
    now_s = 100.0
    for _ in range(4):
        rates.take(caller)
    with pytest.raises(QueueFull):
        rates.take(caller)


def test_names_are_counted_one_by_one_up_to_a_bound() -> None:
    usage = metrics.CallerUsage()
    labels = {usage._label(Caller(f"name-{n}")) for n in range(1000)}
    assert len(labels) == metrics.MOST_NAMES + 1
    assert metrics.OTHERS in labels


def test_the_usual_options_and_a_lines_own(tmp_path: Path) -> None:
    path = tmp_path / "callers"
    path.write_text(FILE)
    callers = read_callers(path)
    quotas = {name: callers.with_key(name) for name in ("alice", "carol")}
    assert quotas["alice"] == Caller("alice", quota=Quota(waiting_jobs=3))
    assert quotas["carol"] == Caller("carol", quota=Quota(waiting_jobs=100, open_images=2))
