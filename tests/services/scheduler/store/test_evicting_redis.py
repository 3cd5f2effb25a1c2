"""A scheduler refuses to start on a Redis that would drop what it is given."""

from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from tests.services.scheduler.refused_start import the_line_it_ends_with


async def test_it_ends_with_one_line_that_names_the_policy(own_redis: RedisProcess) -> None:
    async with connect(own_redis.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    said = await the_line_it_ends_with("--redis-url", own_redis.url)
    assert b"maxmemory-policy is allkeys-lru" in said
