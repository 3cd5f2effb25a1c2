import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess, RedisStartError, find_redis_server


async def test_an_answered_write_survives_kill_9(own_redis: RedisProcess) -> None:
    client = connect(own_redis.url)
    await client.set("key", b"value")
    own_redis.kill9()
    assert not own_redis.running
    own_redis.restart()
    assert await client.get("key") == b"value"
    await client.aclose()


async def test_is_durable_and_evicts_nothing(redis: Redis) -> None:
    for option, value in {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}.items():
        assert await redis.config_get(option) == {option: value}


def test_a_named_binary_that_is_not_one_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REDIS_SERVER", str(tmp_path / "no-redis"))
    with pytest.raises(RedisStartError, match="no-redis is not an executable"):
        find_redis_server()


def test_another_redis_on_the_port_is_not_taken_for_ours(redis_server: RedisProcess, tmp_path: Path) -> None:
    with pytest.raises(RedisStartError, match="not ours answers"):
        RedisProcess(tmp_path, port=redis_server.port).start()


def test_a_server_that_dies_at_once_is_an_error_with_its_log(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        server = RedisProcess(tmp_path, port=holder.getsockname()[1])
        with pytest.raises(RedisStartError, match="in use"):
            server.start()
    assert not server.running
