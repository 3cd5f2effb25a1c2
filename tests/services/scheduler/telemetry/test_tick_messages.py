"""Ticks as messages for those who watch."""

import json
from dataclasses import replace
from typing import Any

import pytest

from services.scheduler.engine.ticks import Ring, TickRecord
from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlanQuery, RoundReason
from services.scheduler.planner.planner import plan_round
from services.scheduler.telemetry.metrics import EndedJob
from services.scheduler.telemetry.tick_messages import TickMessages, chrome_trace
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
    jobs = Ring[EndedJob](kept=3)
    for number in range(5):
        jobs.add(EndedJob(0.0, "finished", float(number)))
    assert [job.latency_ms for job in jobs.since(4)] == [4.0]
    assert [job.latency_ms for job in jobs.since(0)] == [2.0, 3.0, 4.0]
    assert jobs.since(5) == []


def events(*records: TickRecord) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(chrome_trace(records))["traceEvents"]
    return made


def test_a_lane_per_worker_and_an_event_per_item() -> None:
    both = planned(1, 8, 1.5, predicted_ms=30.0, skips=2)
    made = events(
        record("unet", 7, (both, timing(1, 40, 8)), (planned(2, 2), timing(41, 60, 2, waited_ms=0.5))),
        record("vae", 7, (both, timing(2, 31, 2))),
    )
    lanes = [e for e in made if e["ph"] == "X"]
    assert [(e["cat"], e["name"], e["ts"], e["dur"]) for e in lanes] == [
        ("unet", "8 rows, 2 skipping", 1000, 39_000),
        ("wait", "wait", 40_500, 500),
        ("unet", "2 rows", 41_000, 19_000),
        ("vae", "1.5 decodes in 2 chunks", 2000, 29_000),
    ]
    unet, vae = lanes[0]["args"], lanes[3]["args"]
    common = {"tick": 7, "place": 1, "rows": 8, "tasks": 8, "skips": 2, "decodes": 1.5, "chunks": 2}
    assert common.items() <= unet.items() & vae.items()
    assert (unet["predicted_ms"], unet["measured_ms"], unet["ran_ms"], vae["ran_ms"]) == (30, 39, 39, 29)
    assert (unet["threads"], vae["threads"], unet["threshold"]) == (1, 1, 0.9)
    assert {e["args"]["name"] for e in made if e["ph"] == "M" and "name" in e["args"]} == {"d", "unet u", "vae v"}
    assert len({(e["pid"], e["tid"]) for e in lanes}) == 2


def test_an_arrow_joins_the_sides_of_an_item_from_the_earlier_one() -> None:
    both, alone = planned(1, 8, 1.0), planned(2, 8)
    made = events(
        record("unet", 7, (both, timing(5, 40, 8)), (alone, timing(40, 60, 8))),
        record("vae", 7, (both, timing(2, 31, 1))),
    )
    arrows = {e["ph"]: e for e in made if e["ph"] in "sf"}
    lanes = {e["cat"]: (e["pid"], e["tid"]) for e in made if e["ph"] == "X"}
    assert arrows["s"]["id"] == arrows["f"]["id"]
    assert (arrows["s"]["ts"], arrows["s"]["pid"], arrows["s"]["tid"]) == (2000, *lanes["vae"])
    assert (arrows["f"]["ts"], arrows["f"]["pid"], arrows["f"]["tid"]) == (5000, *lanes["unet"])
    assert len([e for e in made if e["ph"] in "sf"]) == 2


def test_counters_of_the_threshold_and_of_what_waits() -> None:
    made = events(record("unet", 7, (planned(1, 2), timing(1, 4, 2)), threshold=0.8))
    counters = {e["name"]: (e["ts"], *e["args"].values()) for e in made if e["ph"] == "C"}
    assert counters == {"threshold": (1000, 0.8), "waiting tasks": (4000, 3), "pending decodes": (4000, 1)}


def test_a_part_that_this_leader_did_not_plan_is_shown_as_it_ran() -> None:
    (item,) = [e for e in events(TickRecord("d", "u", "unet", 3, (timing(1, 2, 6),))) if e["ph"] == "X"]
    assert (item["name"], item["args"]["rows"], "predicted_ms" in item["args"]) == ("6 rows", 6, False)


def test_domains_are_processes() -> None:
    made = events(*(record("unet", 1, (planned(1, 2), timing(0, 1, 2)), domain=d) for d in ("b", "a")))
    names = {e["pid"]: e["args"]["name"] for e in made if e["name"] == "process_name"}
    assert names == {1: "a", 2: "b"}
    assert sorted(e["pid"] for e in made if e["ph"] == "X") == [1, 2]
