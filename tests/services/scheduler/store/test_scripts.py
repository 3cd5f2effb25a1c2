from importlib.resources import files
from pathlib import Path

from redis.asyncio import Redis

from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import script_sources
from synerdiff.jobs import TRANSITIONS
from tests.services.scheduler.redis_jobs import DIGEST
from tests.values import a_request


def test_every_lua_file_is_a_script_or_goes_in_front_of_some() -> None:
    folder = Path(str(files("services.scheduler.store"))) / "lua"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.lua")}
    assert found - {"common", "fair", "leader", "restoring"} == set(script_sources())


async def test_every_script_compiles(redis: Redis) -> None:
    for source in script_sources().values():
        await redis.script_load(source)


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
    accepted = await store.accept(a_request(), DIGEST, abandonable=False)
    await redis.script_flush()
    assert await store.job(accepted.job_id) is not None
