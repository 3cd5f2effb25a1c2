"""The one state table: what it promises to everyone who relies on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synerdiff.jobs import ENDED, TRANSITIONS, JobState
from synerdiff.v1 import images_pb2


def reachable(state: JobState) -> set[JobState]:
    found: set[JobState] = set()
    left = [state]
    while left:
        for following in TRANSITIONS[left.pop()] - found:
            found.add(following)
            left.append(following)
    return found


def test_every_state_is_in_the_table_and_numbered_as_in_the_proto() -> None:
    assert set(TRANSITIONS) == set(JobState)
    for state in JobState:
        assert images_pb2.JobState.Name(images_pb2.JobState.ValueType(state)) == f"JOB_STATE_{state.name}"


def test_an_end_is_an_end() -> None:
    assert {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED} == ENDED


@pytest.mark.parametrize("state", sorted(set(JobState) - ENDED))
def test_whatever_has_not_ended_can_still_end_in_any_way_and_never_comes_back(state: JobState) -> None:
    assert reachable(state) >= ENDED
    assert state not in reachable(state)
    assert {JobState.FAILED, JobState.CANCELLED} <= TRANSITIONS[state]


@given(st.lists(st.sampled_from(JobState), min_size=1, max_size=30))
def test_no_walk_along_the_table_is_longer_than_the_states(wanted: list[JobState]) -> None:
    state, steps = JobState.QUEUED, 0
    for following in wanted:
        if following in TRANSITIONS[state]:
            state, steps = following, steps + 1
    assert steps < len(JobState)
