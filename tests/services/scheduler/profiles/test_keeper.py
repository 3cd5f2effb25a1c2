"""Where a leader's profiles come from, on a real engine and Redis with workers whose times are known."""

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError
from structlog.testing import capture_logs

from services.scheduler.engine.engine import Engine
from services.scheduler.engine.events import Event, JobArrived, JobDropped, Reported, UnetAttached, VaeAttached
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.profiles.keeper import KeeperOptions, ProfileKeeper
from services.scheduler.profiles.measuring.course import ProfileCourse
from services.scheduler.profiles.measuring.findings import subject_of
from services.scheduler.profiles.measuring.prober import Prober
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.store import ProfileStore, usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Profile, ProfileSubject, dump
from synerdiff.registry import WorkerRecord
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.measured_profiles import SUBJECT, profile
from tests.services.scheduler.timed_pair import TimedPair, pair
from tests.services.scheduler.world import job
from tests.waiting import HANG_S

KEY = BatchKey("emoji", 256, 256)
SHORT = ProfilerOptions(max_rows=8, max_decodes=2, chunks=(1,))
AT_ONCE = KeeperOptions(when_idle=True, idle_s=0, profiler=SHORT)


class Led:
    """An engine and its keeper over one pair of workers."""

    def __init__(self, options: KeeperOptions, device: str = "EPYC") -> None:
        self.engine = Engine(ConfiguredPolicy(POLICIES["continuous"], PolicyBounds()), leader_token=3)
        self.workers = TimedPair(lambda worker_id, report: self.on(Reported(worker_id, report)))
        self.keeper = ProfileKeeper(options, self.engine, self.workers.send, self.on)
        self.pair = pair(device=device)
        self.attach(self.pair.unet, self.pair.vae)

    def on(self, event: Event) -> None:
        self.keeper.on(event)
        self.engine.on(event, 0)

    def attach(self, *records: WorkerRecord) -> None:
        for each in records:
            name = each.worker_id, each.domain, each.model_card.name
            if each.kind == "unet":
                self.on(UnetAttached(UnetLaneState(*name, slots=32, arena_address="a")))
            else:
                self.on(VaeAttached(VaeLaneState(*name)))
        self.keeper.announced(records)

    @property
    def known(self) -> Profile | None:
        return self.engine.holdings.profiles.get((self.pair.unet.domain, KEY))

    async def follow(self, times: int = 1) -> None:
        for _ in range(times):
            await self.keeper.follow()
            await asyncio.sleep(0)

    async def until(self, logged: str) -> list[MutableMapping[str, Any]]:
        """Follow until something is logged; all that was."""
        with capture_logs() as lines:
            async with asyncio.timeout(HANG_S):
                while not any(line["event"] == logged for line in lines):
                    await self.follow()
                    await asyncio.sleep(0)
        return list(lines)

    async def until_profiled(self) -> Profile:
        await self.until("profiled")
        await self.follow()
        assert self.known
        return self.known


def subject_here() -> Profile:
    here = pair()
    return profile(subject_of(here.unet, here.vae, 256, 256))


async def test_a_kept_profile_is_found_when_its_workers_come(redis: Redis) -> None:
    await ProfileStore(redis).put(subject_here())
    led = Led(KeeperOptions(store=ProfileStore(redis)))
    await led.follow()
    assert led.known == subject_here()
    other = Led(KeeperOptions(store=ProfileStore(redis)), device="H100")
    await other.follow()
    assert other.known is None


class ForgetfulStore(ProfileStore):
    """A store whose Redis is away when it is asked first."""

    asked = 0

    async def get(self, subject: ProfileSubject) -> Profile | None:
        self.asked += 1
        if self.asked == 1:
            raise ConnectionError("away")
        return await super().get(subject)


async def test_a_kept_profile_is_asked_for_again_after_an_error_of_redis(redis: Redis) -> None:
    store = ForgetfulStore(redis)
    await store.put(subject_here())
    led = Led(KeeperOptions(store=store))
    with pytest.raises(ConnectionError):
        await led.follow()
    await led.follow(2)
    assert led.known == subject_here()
    assert store.asked == 2


async def test_a_given_profile_goes_first_and_is_refused_where_it_does_not_fit(redis: Redis) -> None:
    given = replace(subject_here(), made_at="given")
    await ProfileStore(redis).put(subject_here())
    led = Led(KeeperOptions(given, ProfileStore(redis)))
    await led.follow()
    assert led.known == given
    foreign = Led(KeeperOptions(profile(replace(given.subject, device="H100")), ProfileStore(redis)))
    with capture_logs() as lines:
        await foreign.follow(3)
    assert foreign.known == subject_here()
    refused = [line for line in lines if "refused" in line["event"]]
    assert [line["reason"] for line in refused] == [
        "subject: the profile is of something else: device 'H100', not 'EPYC'"
    ]


async def test_a_card_says_its_budget_where_the_profile_does_not() -> None:
    of_card, of_profile = SkipCfgBudget("reuse", 0.5, 1), SkipCfgBudget("extrapolate:0.5", 0.6, 2)
    led = Led(KeeperOptions())
    led.attach(replace(led.pair.unet, model_card=replace(led.pair.unet.model_card, skip_cfg=of_card)), led.pair.vae)
    await led.follow()
    assert led.engine.holdings.budgets == {"emoji": of_card}
    measured = Led(KeeperOptions(replace(subject_here(), skip_cfg=of_profile)))
    await measured.follow()
    assert measured.engine.holdings.budgets == {"emoji": of_profile}


async def test_an_idle_pool_measures_what_nobody_has_and_keeps_it(redis: Redis) -> None:
    led = Led(replace(AT_ONCE, store=ProfileStore(redis)))
    made = await led.until_profiled()
    async with asyncio.timeout(HANG_S):
        while await ProfileStore(redis).get(made.subject) is None:
            await asyncio.sleep(0.01)
    assert await ProfileStore(redis).get(made.subject) == made
    assert led.workers.held == {}
    later = Led(KeeperOptions(store=ProfileStore(redis)))
    await later.follow()
    assert later.known == made


async def test_without_being_told_to_nothing_is_measured() -> None:
    led = Led(KeeperOptions(idle_s=0))
    await led.follow(5)
    assert led.workers.plans == 0


async def test_a_job_stops_it_at_once_and_it_goes_on_from_there() -> None:
    led = Led(AT_ONCE)
    await led.follow()
    while led.workers.plans < 12:
        await asyncio.sleep(0)
    assert led.workers.held
    led.on(JobArrived(job("a")))
    assert led.workers.held == {}
    plans = led.workers.plans
    await led.follow(3)
    assert led.workers.plans == plans
    led.on(JobDropped("a"))
    (began,) = [line for line in await led.until("profiled") if line["event"] == "profiling while idle"]
    assert began["measured"] > 0


async def test_plans_go_by_a_draft_until_all_is_measured_and_a_job_does_not_take_it_away(redis: Redis) -> None:
    led = Led(replace(AT_ONCE, store=ProfileStore(redis)))
    (drafted,) = [line for line in await led.until("drafted a profile") if line["event"] == "drafted a profile"]
    draft = led.known
    assert draft
    assert draft.caps.unet <= 4
    led.on(JobArrived(job("a")))
    await led.follow(3)
    assert led.known is draft
    assert await ProfileStore(redis).get(draft.subject) is None
    led.on(JobDropped("a"))
    made = await led.until_profiled()
    assert sum(cell.samples for cell in made.cells) > sum(cell.samples for cell in draft.cells)
    assert drafted["measured"] < sum(cell.samples for cell in made.cells)


async def test_numbers_of_ticks_rise_over_probes_and_plans() -> None:
    led = Led(AT_ONCE)
    await led.until_profiled()
    assert led.workers.ticks == sorted(set(led.workers.ticks))
    assert led.engine.next_tick() > led.workers.ticks[-1]


async def test_workers_that_share_their_domain_with_others_are_not_measured() -> None:
    led = Led(AT_ONCE)
    led.attach(led.pair.unet, led.pair.vae, replace(led.pair.unet, worker_id="unet-1"))
    await led.follow(5)
    assert led.workers.plans == 0


async def test_what_cannot_be_measured_is_given_up_after_a_few_tries() -> None:
    led = Led(AT_ONCE)
    led.workers.broken = 8
    for _ in range(200):
        await led.follow()
        await asyncio.sleep(0)
    plans = led.workers.plans
    await led.follow(50)
    assert led.workers.plans == plans
    assert led.known is None


async def test_a_fault_in_measuring_is_logged_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(profiler: Profiler, prober: Prober, told: Callable[[ProfileCourse], None]) -> Profile:
        raise KeyError("a fault")

    monkeypatch.setattr(Profiler, "run", broken)
    led = Led(AT_ONCE)
    with capture_logs() as lines:
        await led.follow(20)
    assert [line["event"] for line in lines].count("profiling failed") == 3


async def test_a_worker_of_another_device_is_looked_up_anew() -> None:
    led = Led(KeeperOptions(subject_here()))
    await led.follow()
    assert led.known
    led.attach(replace(led.pair.unet, device="H100"), replace(led.pair.vae, device="H100"))
    await led.follow()
    assert led.known is None


# ---- kept profiles


async def test_what_is_kept_comes_back(redis: Redis) -> None:
    store, kept = ProfileStore(redis), profile()
    await store.put(kept)
    found = await ProfileStore(redis).get(SUBJECT)
    assert found == kept
    assert found.digest == kept.digest


async def test_a_newer_one_takes_its_place_and_others_stay(redis: Redis) -> None:
    store, other = ProfileStore(redis), replace(SUBJECT, device="H100")
    newer = replace(profile(), made_at="2026-11-23T00:00:00+00:00")
    for each in (profile(), profile(other), newer):
        await store.put(each)
    assert await store.get(SUBJECT) == newer
    assert await store.get(other) == profile(other)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("device", "H100", "device 'EPYC', not 'H100'"),
        ("model_digest", "d2", "model_digest 'd1', not 'd2'"),
        ("dtype", "bfloat16", "dtype 'float32', not 'bfloat16'"),
        ("latent_shape", (4, 64, 64), "latent_shape 4x32x32, not 4x64x64"),
        ("shares", "1 + 1 threads", "shares '2 + 2 threads', not '1 + 1 threads'"),
    ],
)
async def test_a_foreign_one_is_refused_in_one_line_with_the_reason(
    redis: Redis, field: str, value: object, said: str
) -> None:
    store = ProfileStore(redis)
    wanted = ProfileSubject(**{**asdict(SUBJECT), field: value})
    await store.put(profile())
    with capture_logs() as lines:
        assert await store.get(wanted) is None
    (line,) = lines
    assert line["nearest_differs"] == said
    with pytest.raises(InvalidRequest, match="something else"):
        usable(profile(), wanted)
    assert usable(profile(), SUBJECT) == profile()


async def test_one_of_another_version_is_refused_with_the_reason(redis: Redis) -> None:
    store = ProfileStore(redis)
    await store.put(profile())
    (field,) = await redis.hkeys("synerdiff:profiles:emoji")
    await redis.hset("synerdiff:profiles:emoji", field, dump(replace(profile(), version=99)))
    for wanted in (SUBJECT, replace(SUBJECT, device="H100")):
        with capture_logs() as lines:
            assert await store.get(wanted) is None
        (line,) = lines
        assert "99" in line["reason"]


async def test_nothing_kept_is_nothing_to_say(redis: Redis) -> None:
    with capture_logs() as lines:
        assert await ProfileStore(redis).get(SUBJECT) is None
    assert lines == []
