"""One leader of a pool at a time, and nothing that an older one may still change: the scripts of Redis see to it."""

import asyncio
import inspect
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.scheduler.store import keys
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease, script_sources
from synerdiff.errors import StaleLeader
from synerdiff.jobs import TRANSITIONS
from tests.services.scheduler.redis_jobs import TIMINGS, Step, a_picture, accept, new_leader, running_job
from tests.waiting import HANG_S

ARGUMENTS: dict[str, Any] = {
    "job_id": "JOB",
    "models": ["emoji"],
    "count": 5,
    "min_absence_s": 0.0,
    "updates": [Step("JOB", 0, 1)],
    "image": a_picture(),
    "index": 0,
    "seed": 7,
    "timings": TIMINGS,
    "code": 13,
    "message": "no",
}

LEADER_METHODS = sorted(
    name
    for name, method in inspect.getmembers(JobStore, inspect.isfunction)
    if not name.startswith("_") and "lease" in inspect.signature(method).parameters
)


async def everything(redis: Redis) -> dict[bytes | str, bytes | None]:
    names = await redis.keys()
    return {name: await redis.dump(name) for name in names}


async def test_tokens_rise_and_only_one_leads(redis: Redis) -> None:
    one, two = (Leadership(redis, "default", name, ttl_s=60.0) for name in ("one", "two"))
    first = await one.acquire()
    assert first == Lease("default", 1)
    assert await two.acquire() is None
    assert await one.acquire() == first, "a repeated call after a lost reply"
    await one.resign(first)
    second = await two.acquire()
    assert second == Lease("default", 2)
    await one.resign(first)
    assert await one.acquire() is None, "an old leader cannot make the new one resign"
    assert not await one.renew(first)
    assert await two.renew(second)


async def test_a_silent_leader_is_followed_after_its_ttl(redis: Redis) -> None:
    one, two = (Leadership(redis, "default", name, ttl_s=60.0) for name in ("one", "two"))
    key = keys.PATTERNS["leader"] % "default"

    async def ttl_runs_out() -> None:
        assert 0 < await redis.pttl(key) <= 60_000
        await redis.pexpire(key, 1)
        async with asyncio.timeout(HANG_S):
            while await redis.exists(key):
                await asyncio.sleep(0.01)

    first = await one.acquire()
    assert first is not None
    await ttl_runs_out()
    assert await one.renew(first), "late, but nobody took the pool meanwhile"
    assert await two.acquire() is None
    await ttl_runs_out()
    assert await two.acquire() == Lease("default", 2)
    assert not await one.renew(first)


async def test_a_process_started_again_under_its_old_name_waits_for_the_ttl_and_leads_under_a_newer_token(
    redis: Redis,
) -> None:
    earlier, later = (Leadership(redis, "default", "pod-0/1", ttl_s=60.0) for _ in range(2))
    first = await earlier.acquire()
    assert first == Lease("default", 1)
    assert await later.acquire() is None, "it would lead under a token that workers have seen from another"
    await earlier.resign(first)
    assert await later.acquire() == Lease("default", 2)


async def test_pools_have_leaders_of_their_own(redis: Redis) -> None:
    assert await Leadership(redis, "a", "one").acquire() == Lease("a", 1)
    assert await Leadership(redis, "b", "two").acquire() == Lease("b", 1)


@pytest.mark.parametrize("name", LEADER_METHODS)
async def test_every_method_that_takes_a_lease_is_fenced(store: JobStore, redis: Redis, name: str) -> None:
    old = await new_leader(redis)
    job_id = await running_job(store, old)
    await accept(store)
    await new_leader(redis, instance_id="two")
    method: Callable[..., Any] = getattr(store, name)
    required = [
        parameter.name
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "lease"
    ]
    arguments = {parameter: job_id if parameter == "job_id" else ARGUMENTS[parameter] for parameter in required}
    before = await everything(redis)
    for lease in (old, Lease("never led", 1)):
        with pytest.raises(StaleLeader, match="token 1"):
            await method(lease, **arguments)
    assert await everything(redis) == before


def test_the_fenced_methods_are_found() -> None:
    scripts = {name.removeprefix("leader/") for name in script_sources() if name.startswith("leader/")}
    assert scripts - {"end_job"} | {"finish", "fail"} == set(LEADER_METHODS)


# ---- the scripts


def test_every_lua_file_is_a_script_or_goes_in_front_of_some() -> None:
    folder = Path(str(files("services.scheduler.store"))) / "lua"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.lua")}
    assert found - {"common", "fair", "leader", "restoring"} == set(script_sources())


async def test_scripts_work_on_the_state_table_of_jobs(redis: Redis) -> None:
    header = script_sources()["job"].split("local function", 1)[0]
    lines = "".join(
        f"{'' if may else 'not '}(TRANSITIONS.{current.name}.{following.name} or false) and "
        for current, after in TRANSITIONS.items()
        for following in TRANSITIONS
        for may in [following in after]
    )
    assert await redis.eval(header + f"return ({lines} true) and 1 or 0", 0) == 1


async def test_a_redis_that_lost_the_scripts_gets_them_again(redis: Redis, store: JobStore) -> None:
    await redis.script_flush()
    job_id = await accept(store)
    await redis.script_flush()
    assert await store.job(job_id) is not None
