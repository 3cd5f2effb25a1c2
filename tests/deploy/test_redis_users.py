"""The users of the secret that redis-secret.sh prints, on a real Redis: what each may do, and no more."""

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from redis.exceptions import AuthenticationError, NoPermissionError

from deploy.kustomize import K8S
from services.scheduler.store import keys
from synerdiff.redis_client import check_keeps_all, connect
from synerdiff.redis_process import answers, find_redis_server, free_port
from synerdiff.requests import Priority
from tests.waiting import HANG_S, wait_until

QUEUE = keys.queue("emoji", Priority.NORMAL)


@pytest.fixture(scope="module")
def secret() -> dict[str, str]:
    script = K8S / "components/redis-password/redis-secret.sh"
    printed = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True, timeout=HANG_S).stdout
    return dict(yaml.safe_load(printed)["stringData"])


@pytest.fixture(scope="module")
def port(secret: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("redis")
    (folder / "users.acl").write_text(secret["users.acl"])
    number = free_port()
    arguments = ["--port", str(number), "--bind", "127.0.0.1", "--aclfile", str(folder / "users.acl"), "--save", ""]
    server = subprocess.Popen([find_redis_server(), *arguments], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(number))
        yield number
    finally:
        server.terminate()
        server.wait(HANG_S)


def ask(port: int, user: str, password: str, *command: str | int) -> Any:
    async def asked() -> Any:
        async with connect(f"redis://{user}:{password}@127.0.0.1:{port}/0") as redis:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]

    return asyncio.run(asked())


def test_synerdiff_has_its_keys_scripts_and_channels_and_no_other(port: int, secret: dict[str, str]) -> None:
    me = ("synerdiff", secret["password"])
    ask(port, *me, "XGROUP", "CREATE", QUEUE, keys.GROUP, "0", "MKSTREAM")
    assert ask(port, *me, "EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, keys.WRITTEN) == b"OK"
    ask(port, *me, "PUBLISH", keys.ACCEPTED, "emoji")
    for refused in (("SET", "other", "x"), ("PUBLISH", "other", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*")):
        with pytest.raises(NoPermissionError):
            ask(port, *me, *refused)

    async def policy() -> Any:
        async with connect(f"redis://{me[0]}:{me[1]}@127.0.0.1:{port}/0") as redis:
            return await check_keeps_all(redis)

    assert asyncio.run(policy())["used_memory"] > 0


def test_keda_reads_queues_alone(port: int, secret: dict[str, str]) -> None:
    me = (secret["keda-user"], secret["keda-password"])
    assert ask(port, *me, "XPENDING", QUEUE, keys.GROUP)["pending"] == 0
    assert ask(port, *me, "XINFO", "GROUPS", QUEUE)
    assert ask(port, *me, "INFO", "server")
    for refused in (
        ("XADD", QUEUE, "*", "a", "b"),
        ("DEL", QUEUE),
        ("HGETALL", keys.job("x")),
        ("XLEN", keys.events("x")),
    ):
        with pytest.raises(NoPermissionError):
            ask(port, *me, *refused)


def test_admin_may_all_and_a_stranger_nothing_but_ping(port: int, secret: dict[str, str]) -> None:
    assert ask(port, "admin", secret["admin-password"], "CONFIG", "GET", "appendonly")
    assert ask(port, "default", "", "PING")
    with pytest.raises(NoPermissionError):
        ask(port, "default", "", "GET", keys.WRITTEN)
    with pytest.raises(AuthenticationError):
        ask(port, "synerdiff", "wrong", "PING")
