"""A scheduler refuses to start on a Redis that would drop what it is given."""

import asyncio
import sys
from pathlib import Path

from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.settings import EXIT_BAD_SETTINGS
from tests.waiting import HANG_S


async def test_it_ends_with_one_line_that_names_the_policy(own_redis: RedisProcess) -> None:
    async with connect(own_redis.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    scheduler = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.scheduler", "--redis-url", own_redis.url, "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[4],
    )
    said, _ = await asyncio.wait_for(scheduler.communicate(), HANG_S)
    assert scheduler.returncode == EXIT_BAD_SETTINGS, said
    assert said.count(b"\n") == 1, said
    assert b"maxmemory-policy is allkeys-lru" in said
