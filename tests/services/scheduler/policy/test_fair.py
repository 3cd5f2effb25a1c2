"""Equal shares between callers: in the order of tasks, and in the queue's virtual time."""

from dataclasses import replace

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.fair import FairQueue, row_calls
from services.scheduler.policy.policies import POLICIES
from services.scheduler.policy.policy_spec import PolicySpec
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import SimulationResult
from services.scheduler.simulation.workloads import Arrival, Mix, poisson
from synerdiff.profiles import Profile
from tests.services.scheduler.simulated import PAPER

MIX = Mix(steps=((10, 0.5), (30, 0.5)))
FEW = 40


def read_order(jobs: list[tuple[str, float]], reads_between: int = 0) -> list[str]:
    """Callers in the order in which their jobs, given with their costs, are read."""
    queue, order = FairQueue(), list[str]()
    unread: list[tuple[float, int, str]] = []

    def read() -> None:
        start, number, caller = min(unread)
        unread.remove((start, number, caller))
        queue.began(2, start)
        order.append(caller)

    for number, (caller, cost) in enumerate(jobs):
        unread.append((queue.start(2, caller, cost), number, caller))
        for _ in range(reads_between):
            read()
    while unread:
        read()
    return order


def test_a_flood_leaves_every_other_place_to_another_caller() -> None:
    assert read_order([("a", 1.0)] * 50 + [("b", 1.0)] * 3)[:7] == ["a", "b", "a", "b", "a", "b", "a"]


def test_shares_are_of_work_and_not_of_requests() -> None:
    order = read_order([("a", 1.0)] * 50 + [("b", 4.0)] * 3)
    assert [order[:n].count("b") for n in (2, 7, 12)] == [1, 2, 3]


def test_a_caller_who_was_away_has_saved_nothing_up() -> None:
    """While a's jobs are read b is not there: the virtual time goes on without b."""
    queue = FairQueue()
    for start in [queue.start(2, "a", 1.0) for _ in range(100)][:-1]:
        queue.began(2, start)
    assert queue.start(2, "b", 1.0) == 98.0
    assert queue.start(2, "a", 1.0) == 100.0


def test_once_nobody_waits_all_begin_alike() -> None:
    queue = FairQueue()
    for start in [queue.start(2, "a", 1.0) for _ in range(100)]:
        queue.began(2, start)
    assert [queue.start(2, caller, 1.0) for caller in "ba"] == [100.0, 100.0]


def test_one_caller_alone_is_served_in_order_of_acceptance() -> None:
    queue = FairQueue()
    starts = [queue.start(2, "a", cost) for cost in (5.0, 1.0, 9.0, 0.1)]
    assert starts == sorted(set(starts))


def test_a_request_costs_its_rows_by_their_pixels() -> None:
    assert row_calls(20, rows=2, num_images=2, pixels=64 * 64, native_pixels=64 * 64) == 80
    assert row_calls(20, rows=1, num_images=1, pixels=128 * 64, native_pixels=64 * 64) == 40


def slower(profile: Profile, factor: float) -> Profile:
    """The same device at a part of its speed."""
    cells = tuple(
        replace(cell, median_ms=cell.median_ms * factor, p90_ms=cell.p90_ms * factor) for cell in profile.cells
    )
    return replace(profile, cells=cells)


def p99_ms(result: SimulationResult, caller: str) -> float:
    latencies = sorted(outcome.latency_ms for outcome in result.outcomes if outcome.caller == caller)
    return latencies[int(0.99 * (len(latencies) - 1))]


def of(caller: str, arrivals: tuple[Arrival, ...]) -> tuple[Arrival, ...]:
    return tuple(replace(arrival, caller=caller) for arrival in arrivals)


def merged(*arrivals: tuple[Arrival, ...]) -> list[Arrival]:
    return sorted((one for some in arrivals for one in some), key=lambda arrival: arrival.at_ms)


def test_a_flood_costs_another_caller_of_the_continuous_policy_at_most_the_half_of_the_device() -> None:
    """One floods at fifty times the other's rate. The other asks for 0.8 of what half of the device can serve, and is
    compared with having a device of half the speed to itself. The flood gives up soon, which ends the simulation."""
    spec: PolicySpec = POLICIES["continuous"]
    rate = 0.8 * MIX.capacity_per_s(PAPER) / 2
    few = of("few", poisson(rate, FEW, MIX, seed=5))
    flood = of("flood", poisson(50 * rate, 50 * FEW, replace(MIX, timed_share=1.0, timeout_s=20.0), seed=6))
    flood = tuple(arrival for arrival in flood if arrival.at_ms < few[-1].at_ms)
    beside = simulate_spec(SimulatedPool(PAPER), spec, merged(few, flood), plans=PlanBook(solve_now=True))
    alone = simulate_spec(SimulatedPool(slower(PAPER, 2.0)), spec, few, plans=PlanBook(solve_now=True))
    assert p99_ms(beside, "few") <= 1.5 * p99_ms(alone, "few")
