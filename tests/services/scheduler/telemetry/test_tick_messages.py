"""Ticks as messages for those who watch."""

from dataclasses import replace

import pytest

from services.scheduler.engine.ticks import TickRecord
from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlanQuery, RoundReason
from services.scheduler.planner.planner import plan_round
from services.scheduler.telemetry.ended_jobs import EndedJob, EndedJobs
from services.scheduler.telemetry.tick_messages import TickMessages
from tests.services.scheduler.measured_profiles import profile
from tests.services.scheduler.reports import planned, record, timing

QUERY = PlanQuery(unet=4, vae=2, threshold=0.8)


def reasoned(reason: RoundReason | None, tick: int = 7) -> TickRecord:
    item = replace(planned(1, 6, 1.0, predicted_ms=96.0, skips=1), reason=reason)
    made = record("unet", tick, (item, timing(1, 91, 6, waited_ms=0.5)))
    assert made.planned
    return replace(made, planned=replace(made.planned, why="u: 3 step, 0 set aside, 1 decode, at ease"))


def test_a_part_says_what_ran_and_what_was_planned() -> None:
    message = TickMessages().message([reasoned(None)], [EndedJob(5.0, "finished", 40.0)], missed=3)
    (part,), (job,) = message.parts, message.ended
    assert (part.domain, part.worker_id, part.kind, part.tick) == ("d", "u", "unet", 7)
    assert (part.threshold, part.in_step, part.waiting_tasks, part.pending_decodes) == (0.9, True, 3, 1)
    assert part.why == "u: 3 step, 0 set aside, 1 decode, at ease"
    (item,) = part.items
    assert (item.place, item.start_unix_ms, item.end_unix_ms, item.rows, item.waited_ms) == (1, 1.0, 91.0, 6, 0.5)
    assert (item.plan.rows, item.plan.skips, item.plan.decodes, item.plan.chunks) == (6, 1, 1.0, 2)
    assert (item.plan.unet_threads, item.plan.vae_threads, item.plan.predicted_ms) == (1, 1, 96.0)
    assert item.plan.round == 0
    assert (job.outcome, job.latency_ms, message.missed) == ("finished", 40.0, 3)


def test_an_item_that_this_leader_did_not_plan_says_what_ran_alone() -> None:
    unplanned = replace(reasoned(None), planned=None)
    (item,) = TickMessages().message([unplanned], [], missed=0).parts[0].items
    assert (item.rows, item.HasField("plan")) == (6, False)


def test_a_round_is_told_once_with_simpler_ones_beside_it() -> None:
    answer = plan_round(profile(), QUERY)
    messages, reason = TickMessages(), RoundReason(profile(), QUERY, answer)
    first = messages.message([reasoned(reason), reasoned(reason, tick=8)], [], missed=0)
    (told,) = first.rounds
    assert {part.items[0].plan.round for part in first.parts} == {told.id}
    assert (told.unet, told.vae, told.threshold, told.fastest_ms) == (4, 2, 0.8, answer.fastest_ms)
    assert told.planned.total_ms == answer.total_ms
    assert [other.name for other in told.others] == ["coarse", "fine", "vae-first"]
    for other, baseline in zip(told.others, (coarse, fine, vae_first), strict=True):
        expected = baseline(profile(), QUERY)
        assert other.total_ms == pytest.approx(expected.total_ms)
        assert other.feasible == expected.feasible
    again = messages.message([reasoned(reason, tick=9)], [], missed=0)
    assert not again.rounds
    assert again.parts[0].items[0].plan.round == told.id


def test_a_round_whose_answer_was_not_known_says_so() -> None:
    (told,) = TickMessages().message([reasoned(RoundReason(profile(), QUERY, None))], [], missed=0).rounds
    assert not told.HasField("planned")
    assert not told.others


def test_a_ring_gives_what_came_since_as_far_as_it_is_kept() -> None:
    jobs = EndedJobs(kept=3)
    for number in range(5):
        jobs.add("finished", float(number))
    assert [job.latency_ms for job in jobs.since(4)] == [4.0]
    assert [job.latency_ms for job in jobs.since(0)] == [2.0, 3.0, 4.0]
    assert jobs.since(5) == []
