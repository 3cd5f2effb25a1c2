"""Profiles in a real Redis: found by what they are of, refused with the reason where they are of something else."""

from dataclasses import asdict, replace

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.profiles.store import ProfileStore, usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import ProfileSubject, dump
from tests.services.scheduler.measured_profiles import SUBJECT, profile


async def test_what_is_kept_comes_back(redis: Redis) -> None:
    store, kept = ProfileStore(redis), profile()
    await store.put(kept)
    found = await ProfileStore(redis).get(SUBJECT)
    assert found == kept
    assert found is not None
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
