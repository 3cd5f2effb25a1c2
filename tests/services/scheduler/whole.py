"""A whole scheduler in this process, over a real Redis and simulated workers behind real gRPC."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

from bench.simulated_workers import CARD, SimulatedUnet, SimulatedVae, SimulatedWorker
from services.scheduler.leading.leader import LeaderOptions
from services.scheduler.leading.pool import Pool
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.store.leadership import Leadership
from synerdiff.interceptors import Check, let_all_in
from synerdiff.registry import WorkerRegistry
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.harness import Scheduler, background, start_scheduler
from tests.waiting import until

LEADER_TTL_S = 0.3
DOMAIN = "simulated"


@dataclass(frozen=True)
class Whole:
    """A scheduler that leads its pool."""

    scheduler: Scheduler
    pool: Pool
    unet: SimulatedUnet

    @property
    def attached(self) -> bool:
        """Whether its leader has both workers."""
        leader = self.pool.leader
        return bool(leader and leader.engine.holdings.unet and leader.engine.holdings.vae)


@contextlib.asynccontextmanager
async def whole_scheduler(
    redis: Redis,
    *,
    tick_s: float = 0.01,
    row_s: float = 0.0,
    decode_s: float = 0.002,
    slots: int = 4,
    policy: str = "continuous",
    check: Check = let_all_in,
) -> AsyncIterator[Whole]:
    """Serve and lead, with a pair of workers attached, until the block ends."""
    registry = WorkerRegistry(redis)
    unet, vae = SimulatedUnet("unet", tick_s, slots, row_s=row_s), SimulatedVae("vae", decode_s)
    plans = PlanBook()
    workers = [SimulatedWorker(servicer, DOMAIN) for servicer in (unet, vae)]
    scheduler = await start_scheduler(redis, check=check)
    pool = Pool(
        "default",
        LeaderOptions(ConfiguredPolicy(POLICIES[policy], PolicyBounds(), plans), plans=plans),
        scheduler.store,
        registry,
        Leadership(redis, "default", "whole", LEADER_TTL_S),
        LEADER_TTL_S,
    )
    whole = Whole(scheduler, pool, unet)
    try:
        for worker in workers:
            await worker.start(registry)
        async with background(pool.run()), background(pool.sweep()):
            await until(lambda: whole.attached)
            yield whole
    finally:
        await cancel_and_wait(*(worker.announcing for worker in workers))
        for worker in workers:
            await worker.host.drain(0)
        await scheduler.stop()


MODEL = CARD.name
