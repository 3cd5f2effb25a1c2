"""Seconds of decoding that a pool still has to do."""

import pytest

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, Task, UnetLaneState
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.telemetry.decode_backlog import (
    UNMEASURED_DECODE_MS,
    DecodeTimes,
    best_decode_ms,
    decode_backlog_s,
)
from synerdiff.plans import SkippedEntry, SkipReason, VaeTickDone
from tests.services.scheduler.reports import KEY, planned, profile, timing
from tests.values import spec as a_spec


def holding(*phases: Phase) -> Holdings:
    holdings = Holdings(max_deaths=1)
    holdings.unet["u"] = UnetLaneState("u", "d", "m")
    for number, phase in enumerate(phases):
        spec = a_spec(f"j/{number}")
        holdings.tasks[spec.task_id] = Task(spec, "j", number, KEY, phase, unet_worker="u")
    return holdings


def test_what_is_ready_or_under_way_counts_by_the_profile_with_no_vae_worker_there() -> None:
    holdings = holding(Phase.RUNNING, Phase.READY_TO_DECODE, Phase.DECODING, Phase.STORING)
    holdings.profiles["d", KEY] = profile()
    assert best_decode_ms(profile()) == 20.0
    assert decode_backlog_s(holdings, DecodeTimes(), ["m", "idle"]) == {"m": pytest.approx(0.04), "idle": 0.0}


def test_a_profile_of_another_domain_will_do_and_a_worker_that_is_gone_does_not_matter() -> None:
    holdings = holding(Phase.READY_TO_DECODE)
    holdings.unet.clear()
    holdings.profiles["elsewhere", KEY] = profile()
    assert decode_backlog_s(holdings, DecodeTimes(), []) == {"m": pytest.approx(0.02)}


def test_without_a_profile_reports_say_how_long_a_decode_takes_and_before_them_a_guess() -> None:
    holdings, times = holding(Phase.READY_TO_DECODE), DecodeTimes()
    assert decode_backlog_s(holdings, times, ()) == {"m": UNMEASURED_DECODE_MS / 1000}
    part = PlannedPart(("t",), (planned(1, 8, 0.5), planned(2, 0, 1.5)), 0.9, KEY)
    done = VaeTickDone(1, (timing(0, 100, 1), timing(100, 400, 1)), (), ())
    times.reported(done, part)
    assert times.mean_ms(KEY) == 200.0
    stale = VaeTickDone(2, (timing(0, 9000, 1),), (SkippedEntry("t", SkipReason.STALE_SLOT),), ())
    times.reported(stale, part)
    times.reported(done, None)
    assert decode_backlog_s(holdings, times, ()) == {"m": pytest.approx(0.2)}
