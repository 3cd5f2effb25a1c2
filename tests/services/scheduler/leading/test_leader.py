"""A leader lets its plans go by profiles as they turn out, between ticks."""

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from services.scheduler.api.operations import worker_statuses
from services.scheduler.engine import events
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import PlannedPart, TickLog
from services.scheduler.leading.leader import Leader, LeaderOptions
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.store.queue import Lease
from synerdiff.plans import UnetTickDone
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.reports import KEY, planned, profile, timing
from tests.services.scheduler.virtual_pool import SIDE, VirtualPool, VirtualStreams, VirtualTimeLoop
from tests.services.scheduler.world import job
from tests.values import a_worker

NOBODY = cast(Any, None)


def leader() -> Leader:
    policy = ConfiguredPolicy(POLICIES["synerdiff"], PolicyBounds())
    made = Leader(Lease("default", 1), LeaderOptions(policy), NOBODY, NOBODY, TickLog())
    made.engine.on(events.UnetAttached(UnetLaneState("u", "d", "m", slots=8)), 0)
    made.engine.on(events.ProfileKnown("d", KEY, profile()), 0)
    return made


def report(leading: Leader, tick: int, ms: float) -> None:
    part = PlannedPart(("t",), (planned(1, 8, predicted_ms=80.0),), 1.0, KEY, in_step=True)
    leading.engine.holdings.unet["u"].plans[tick] = part
    leading.on(events.Reported("u", UnetTickDone(tick, (timing(0, ms, 8),), (), ())))


async def test_a_profile_that_is_off_is_replaced_and_one_that_is_right_is_not() -> None:
    slow, steady = leader(), leader()
    for tick in range(1, 101):
        report(slow, tick, 120.0)
        report(steady, tick, 80.0)
    for leading in (slow, steady):
        await leading.correct_profiles()
    assert 115 < slow.engine.holdings.profiles["d", KEY].latency_ms(8, 0) < 121
    assert steady.engine.holdings.profiles["d", KEY].digest == profile().digest
    assert slow.observer.corrections["d", KEY].original.digest == profile().digest


async def test_a_profile_that_is_taken_away_meanwhile_is_not_brought_back() -> None:
    leading = leader()
    for tick in range(1, 101):
        report(leading, tick, 120.0)
    correcting = asyncio.create_task(leading.correct_profiles())
    await asyncio.sleep(0)  # on its way to the other thread
    leading.on(events.ProfileUnknown("d", KEY))
    await correcting
    assert leading.engine.holdings.profiles == {}


def lost(kind: str) -> float:
    return REGISTRY.get_sample_value("synerdiff_worker_losses_total", {"kind": kind}) or 0.0


def test_a_worker_that_goes_without_a_word_is_counted_and_one_that_drained_is_not() -> None:
    async def lose(*, draining: bool) -> None:
        leading = leader()
        leading.on(events.VaeAttached(VaeLaneState("v", "d", "m")))
        leading.on(events.WorkerAnnounced("v", takes_new=not draining))
        for worker_id in ("v", "unknown"):
            leading.on(events.WorkerLost(worker_id))

    before = lost("vae"), lost("unet")
    asyncio.run(lose(draining=False))
    assert (lost("vae"), lost("unet")) == (before[0] + 1, before[1])
    asyncio.run(lose(draining=True))
    assert (lost("vae"), lost("unet")) == (before[0] + 1, before[1])


async def test_workers_that_a_leaving_leader_lets_go_are_not_lost() -> None:
    leading, before = leader(), lost("unet")
    leading.ended.set()
    leading.on(events.WorkerLost("u"))
    assert lost("unet") == before


async def test_the_rows_of_a_workers_last_item_are_told() -> None:
    leading = leader()
    report(leading, 1, 80.0)
    record = a_worker(worker_id="u", domain="d")
    (status,) = worker_statuses([record], leading.engine.holdings)
    assert status.rows == 8


def test_what_is_known_of_a_domain_goes_and_comes_with_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = VirtualPool(monkeypatch)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(_lose_a_domain(virtual))


async def _lose_a_domain(virtual: VirtualPool) -> None:
    serving = asyncio.create_task(virtual.pool.run())
    await virtual.until(lambda: virtual.pool.leader is not None)
    leading = cast(Leader, virtual.pool.leader)
    everybody, streams = list(virtual.domains.records), cast(VirtualStreams, leading.streams)

    def known() -> set[str]:
        return {domain for domain, _ in leading.engine.holdings.profiles}

    async def serve(job_id: str) -> None:
        virtual.store.accept(job(job_id, images=8, steps=3, width=SIDE, height=SIDE, deadline_ms=1 << 60))
        await virtual.until(lambda: bool(virtual.store.ended[job_id]))

    await virtual.until(lambda: known() == {"d0", "d1"})
    await serve("before")
    assert set(leading.observer.thresholds) == {"d0", "d1"}
    streams.lose("d1")
    await asyncio.sleep(0)
    assert known() == {"d0", "d1"}, "it is announced, and may be back at once"
    virtual.domains.records[:] = [record for record in everybody if record.domain == "d0"]
    await virtual.until(lambda: known() == {"d0"})
    assert set(leading.observer.thresholds) == {"d0"}
    virtual.domains.records[:] = everybody
    await virtual.until(lambda: known() == {"d0", "d1"})
    await serve("after")
    assert set(leading.observer.thresholds) == {"d0", "d1"}, "its workers have ignored no plan"
    assert virtual.pool.leader is leading
    await cancel_and_wait(serving)
