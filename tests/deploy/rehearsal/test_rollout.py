"""The controllers' moves, played to their end on pods that become ready one round after they are made."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.rehearsal.manifests import PodTemplate, Workload
from deploy.rehearsal.rollout import Moves, is_settled, next_moves


@dataclass
class PodView:
    name: str
    revision: str
    created_at: float
    ready_at: float | None


def wanted_of(replicas: int, revision: str, surge: int | str, unavailable: int | str) -> Workload:
    return Workload("worker", "Deployment", replicas, PodTemplate({}, (), (), 0.0, revision), surge, unavailable)


@dataclass
class World:
    """Pods that obey: made at once, ready a round later, gone at once. Remembers the extremes."""

    pods: list[PodView] = field(default_factory=list)
    clock: float = 0.0
    most: int = 0
    least_ready: int = 1000
    made: int = 0

    def settle(self, wanted: Workload, rounds: int = 60) -> None:
        for _ in range(rounds):
            if is_settled(wanted, self.pods):
                return
            self.step(next_moves(wanted, self.pods), wanted.template.revision)
        raise AssertionError(f"never settled: {self.pods}")

    def step(self, moves: Moves, revision: str) -> None:
        self.clock += 1.0
        self.pods = [pod for pod in self.pods if pod.name not in moves.stop]
        self.least_ready = min(self.least_ready, sum(pod.ready_at is not None for pod in self.pods))
        self.pods = [PodView(p.name, p.revision, p.created_at, p.ready_at or self.clock) for p in self.pods]
        for _ in range(moves.create):
            self.made += 1
            self.pods.append(PodView(f"pod-{self.made}", revision, self.clock, None))
        self.most = max(self.most, len(self.pods))


def ready(name: str, at: float, revision: str = "a") -> PodView:
    return PodView(name, revision, at - 1, at)


def test_scaling_down_gives_up_the_pod_that_is_not_ready_then_the_youngest() -> None:
    pods = [ready("old", 1.0), ready("young", 9.0), PodView("coming", "a", 10.0, None)]
    assert next_moves(wanted_of(2, "a", 1, 0), pods).stop == ("coming",)
    assert next_moves(wanted_of(1, "a", 1, 0), pods).stop == ("coming", "young")


def test_without_surge_or_unavailability_one_pod_is_given_up_so_that_a_rollout_moves() -> None:
    assert next_moves(wanted_of(2, "b", 0, 0), [ready("x", 1.0), ready("y", 2.0)]).stop == ("y",)


def test_an_old_pod_waits_for_the_new_one_to_be_ready() -> None:
    wanted = wanted_of(1, "b", 1, 0)
    assert next_moves(wanted, [ready("old", 1.0)]) == Moves(1)
    coming = PodView("new", "b", 2.0, None)
    assert next_moves(wanted, [ready("old", 1.0), coming]) == Moves()
    assert next_moves(wanted, [ready("old", 1.0), ready("new", 3.0, "b")]) == Moves(0, ("old",))


@given(
    replicas=st.integers(1, 9),
    surge=st.one_of(st.integers(0, 3), st.sampled_from(["0%", "25%", "100%"])),
    unavailable=st.one_of(st.integers(0, 3), st.sampled_from(["0%", "25%", "50%"])),
)
def test_a_rollout_settles_within_its_bounds(replicas: int, surge: int | str, unavailable: int | str) -> None:
    world = World()
    world.settle(wanted_of(replicas, "a", surge, unavailable))
    world.most, world.least_ready = 0, 1000
    world.settle(wanted_of(replicas, "b", surge, unavailable))

    def count(value: int | str, up: bool) -> int:
        if isinstance(value, int):
            return value
        exact = replicas * int(value[:-1])
        return -(-exact // 100) if up else exact // 100

    surges, spares = count(surge, True), count(unavailable, False)
    assert world.most <= replicas + surges
    assert world.least_ready >= replicas - (spares if surges or spares else 1)


def test_a_controller_that_forgets_the_bounds_is_found_out() -> None:
    """The test above can fail: a rollout that stops all old pods at once goes below its bound."""
    world = World([ready("x", 1.0), ready("y", 2.0)])
    world.step(Moves(2, ("x", "y")), "b")
    assert world.least_ready == 0


@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_scaling_settles(replicas: int) -> None:
    world = World()
    world.settle(wanted_of(2, "a", "25%", "25%"))
    world.settle(wanted_of(replicas, "a", "25%", "25%"))
    assert len(world.pods) == replicas
