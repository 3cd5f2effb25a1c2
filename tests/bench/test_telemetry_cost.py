"""The telemetry bench measures what it says: every span of a traced job, and those of ticks."""

from collections import Counter

from bench.telemetry_cost import Load, watched
from services.scheduler.telemetry.job_traces import TICKS_APART

LOAD = Load(domains=2, tasks=8, steps=20, tick_ms=20.0)
STAGES = ("queue", "encode", "denoise", "decode", "store", "deliver")


def test_every_job_and_some_ticks_are_traced() -> None:
    telemetry = watched(LOAD, waves=8)
    counts = Counter(span.name for span in telemetry.spans)
    assert {name: counts[name] for name in ("accept", "job", *STAGES)} == dict.fromkeys(("accept", "job", *STAGES), 64)
    assert telemetry.ticks >= 2 * 20 * 8
    assert abs(counts["unet tick"] - telemetry.ticks / TICKS_APART) <= 2
    assert counts["vae tick"] > 0
    links = [len(span.links) for span in telemetry.spans if span.name == "denoise"]
    assert abs(sum(links) / len(links) - LOAD.steps / TICKS_APART) <= 1
    assert len(telemetry.spent_s) == 5
    assert all(seconds > 0 for seconds in telemetry.spent_s.values())
