import asyncio
import dataclasses
import json
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from synerdiff.host import boot_id
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.registry import WorkerRegistry, _tell_once, default_domain, keep_announced
from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff.stopping import cancel_and_wait
from tests.values import CARD, a_worker

WORKER = a_worker(worker_id="unet-1", address="10.0.0.1:50061", domain="cpu:host", boot_id="host")


@pytest.fixture
def registry(redis: Redis) -> WorkerRegistry:
    return WorkerRegistry(redis)


async def test_a_record_comes_back_as_it_was_and_reads_as_text(registry: WorkerRegistry, redis: Redis) -> None:
    await registry.announce(WORKER, ttl_s=60)
    assert await registry.workers() == [WORKER]
    assert await registry.cards() == [CARD]
    stored: Any = await redis.get("synerdiff:worker:unet-1")
    assert json.loads(stored)["model_card"]["default_sampler"] == "PNDM"


async def test_what_only_a_newer_worker_knows_is_left_out(registry: WorkerRegistry, redis: Redis) -> None:
    """As in a rolling upgrade, where schedulers may be older than a worker."""
    worker = dataclasses.replace(WORKER, model_card=dataclasses.replace(CARD, skip_cfg=SkipCfgBudget("reuse", 0.5, 2)))
    await registry.announce(worker, ttl_s=60)
    stored: Any = await redis.get("synerdiff:worker:unet-1")
    newer = json.loads(stored) | {"seats": 2}
    card = newer["model_card"]
    card |= {"mood": "blue", "samplers": [*card["samplers"], {**card["samplers"][0], "sampler": "SAMPLER_OF_TOMORROW"}]}
    card["samplers"][0]["fastest"] = True
    card["skip_cfg"]["taste"] = 1
    await redis.set("synerdiff:worker:unet-1", json.dumps(newer))
    await redis.hset("synerdiff:models", "emoji", json.dumps(card))
    assert await registry.workers() == [worker]
    assert await registry.cards() == [worker.model_card]


async def test_workers_are_listed_by_pool(registry: WorkerRegistry) -> None:
    others = [dataclasses.replace(WORKER, worker_id=f"unet-{i}", pool=f"pool-{i}") for i in (2, 3)]
    for record in (*others, WORKER):
        await registry.announce(record, ttl_s=60)
    assert await registry.workers() == [WORKER, *others]
    assert await registry.workers("pool-2") == others[:1]
    assert await registry.workers("no-such-pool") == []


async def test_a_silent_worker_is_forgotten_and_its_model_is_not(registry: WorkerRegistry, redis: Redis) -> None:
    await registry.announce(WORKER, ttl_s=0.05)
    await asyncio.sleep(0.1)
    assert await registry.workers() == []
    assert await registry.cards() == [CARD]
    assert await redis.exists("synerdiff:workers") == 0
    await registry.announce(WORKER, ttl_s=60)
    await registry.withdraw(WORKER.worker_id)
    assert await registry.workers() == []


async def test_a_worker_that_comes_back_while_it_is_forgotten_is_not(
    registry: WorkerRegistry, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.announce(WORKER, ttl_s=0.02)
    await asyncio.sleep(0.05)
    mget = redis.mget

    async def mget_then_announced(names: Any) -> Any:
        texts = await mget(names)
        await registry.announce(WORKER, ttl_s=60)
        return texts

    monkeypatch.setattr(redis, "mget", mget_then_announced)
    assert await registry.workers() == []
    monkeypatch.undo()
    assert await registry.workers() == [WORKER]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"kind": "text", "model_card": 3}'])
async def test_what_cannot_be_read_is_left_out_and_told_of_once(
    registry: WorkerRegistry, redis: Redis, text: str
) -> None:
    _tell_once.cache_clear()
    await registry.announce(WORKER, ttl_s=60)
    await registry.announce(dataclasses.replace(WORKER, worker_id="unet-0"), ttl_s=60)
    await redis.set("synerdiff:worker:unet-0", text)
    await redis.hset("synerdiff:models", "another", text)
    with capture_logs() as lines:
        for _ in range(2):
            assert await registry.workers() == [WORKER]
            assert await registry.cards() == [CARD]
    assert [line["log_level"] for line in lines] in (["error"], ["error"] * 2)


async def test_only_unet_workers_say_what_a_model_can_do(registry: WorkerRegistry) -> None:
    await registry.announce(WORKER, ttl_s=60)
    vae = dataclasses.replace(
        WORKER, worker_id="vae-1", kind="vae", model_card=dataclasses.replace(CARD, samplers=(), max_side=64)
    )
    await registry.announce(vae, ttl_s=60)
    assert await registry.cards() == [CARD]
    assert await registry.workers() == [WORKER, vae]


async def test_a_worker_stays_announced_over_a_restart_of_redis_until_it_goes(own_redis: RedisProcess) -> None:
    redis = connect(own_redis.url)
    registry = WorkerRegistry(redis)
    keeping = asyncio.create_task(keep_announced(registry, lambda: WORKER, ttl_s=0.9))
    while await registry.workers() != [WORKER]:
        await asyncio.sleep(0.02)
    own_redis.kill9()
    await asyncio.sleep(1.0)
    assert not keeping.done()
    own_redis.start()
    while await registry.workers() != [WORKER]:
        await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    while await registry.workers() != [WORKER]:
        await asyncio.sleep(0.02)
    await cancel_and_wait(keeping)
    assert await registry.workers() == []
    await redis.aclose()


def test_the_domain_is_the_gpu_or_else_this_hosts_cpu() -> None:
    assert default_domain("GPU-1234") == "GPU-1234"
    assert default_domain() == f"cpu:{boot_id()}"
