"""Redis: a process of our own, connections to it, and what is said and done while it is away or refuses."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.exceptions
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError
from structlog.testing import capture_logs
from structlog.typing import EventDict

from synerdiff import redis_client
from synerdiff.errors import Unavailable
from synerdiff.redis_client import CALM_S, EvictingRedis, RedisTroubleLog, check_keeps_all, connect, patiently
from synerdiff.redis_process import RedisProcess, RedisStartError, find_redis_server
from tests.waiting import HANG_S, VirtualTime


@pytest.fixture
def resetting_port() -> Iterator[int]:
    """Something that answers the first byte of a connection and resets it while more is being written."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1)
                connection.sendall(b"-DENIED\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_connection_reset_amid_its_greeting_reads_as_redis_away_on_uvloop(resetting_port: int) -> None:
    async def ping() -> None:
        async with connect(f"redis://127.0.0.1:{resetting_port}/0") as client:
            await client.ping()

    with pytest.raises(redis.exceptions.ConnectionError):
        uvloop.run(ping())


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"])
async def test_a_redis_that_evicts_is_told(own_redis: RedisProcess, policy: str) -> None:
    async with connect(own_redis.url) as client:
        await check_keeps_all(client)
        await client.config_set("maxmemory-policy", policy)
        with pytest.raises(EvictingRedis, match=f"maxmemory-policy is {policy}"):
            await check_keeps_all(client)


@pytest.mark.parametrize(
    "reply",
    [
        "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist to disk.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "FAILOVER in progress",
    ],
)
async def test_a_refusal_that_passes_is_waited_out_and_said(reply: str) -> None:
    answers = [ResponseError(reply), ResponseError(reply)]

    async def call() -> str:
        if answers:
            raise answers.pop()
        return "done"

    assert await patiently(call, 30.0) == "done"
    answers += [ResponseError(reply)] * 1000
    with pytest.raises(Unavailable, match=reply.partition(".")[0]):
        await patiently(call, 0.2)


@pytest.mark.parametrize("tries_before", [0, 2])
async def test_patience_ends_though_a_cancellation_is_answered_with_another_error(tries_before: int) -> None:
    """As redis-py 8.1 does at times: one in some dozen calls was tried for as long as Redis was away."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls > tries_before:
            try:
                await asyncio.sleep(HANG_S)
            except asyncio.CancelledError:
                raise redis.exceptions.ConnectionError("Connection closed by server.") from None
        raise redis.exceptions.ConnectionError("Connection refused.")

    async with asyncio.timeout(HANG_S / 2):
        with pytest.raises(Unavailable, match="Redis is away"):
            await patiently(call, 1.0)
    assert calls == tries_before + 1


async def test_a_mistake_is_not_repeated() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await patiently(call, 30.0)
    assert calls == 1


FULL = OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'.")
AWAY = ConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused.")
# redis-py cuts off the word of an error that it has a class for.
READ_ONLY = ReadOnlyError("You can't write against a read only replica.", status_code="READONLY")


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    virtual = VirtualTime()
    monkeypatch.setattr(redis_client, "time", virtual)
    return virtual


def told(lines: list[EventDict]) -> list[tuple[str, str]]:
    return [(line["event"], line.get("reason", "").partition(":")[0]) for line in lines]


def test_a_thousand_failed_calls_of_one_reason_are_two_lines(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    with capture_logs() as lines:
        for _ in range(1000):
            time.sleep(0.1)
            assert trouble_log.failed(FULL)
            trouble_log.wrote()  # another call got through: that is no end of it
        time.sleep(CALM_S + 0.1)
        trouble_log.wrote()
        trouble_log.wrote()
    assert told(lines) == [("redis is in trouble", "Redis is full"), ("redis is well again", "")]
    assert (lines[-1]["failed_calls"], lines[-1]["lasted_s"]) == (1000, pytest.approx(99.9))


def test_each_further_reason_is_told_once(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    with capture_logs() as lines:
        for error in (FULL, AWAY, FULL, Unavailable("Redis is away: by another name"), AWAY, READ_ONLY, FULL):
            assert trouble_log.failed(error)
    assert told(lines) == [
        ("redis is in trouble", "Redis is full"),
        ("redis is in further trouble", "Redis is away"),
        ("redis is in further trouble", "Redis is read-only"),
    ]


def test_reads_that_a_full_redis_answers_and_calm_alone_end_nothing(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    trouble_log.failed(FULL)
    with capture_logs() as lines:
        time.sleep(1000)
        trouble_log.failed(FULL)
        trouble_log.wrote()
    assert lines == []


def test_a_mistake_of_the_code_is_no_trouble_of_redis() -> None:
    with capture_logs() as lines:
        assert not RedisTroubleLog().failed(ResponseError("WRONGTYPE Operation against a key"))
    assert lines == []


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
