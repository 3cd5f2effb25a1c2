"""One leader at a time, and no plan twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synerdiff.errors import StaleLeader
from synerdiff.leadership_guard import LeaderGuard

EVENTS = st.lists(st.tuples(st.sampled_from(["attach", "plan"]), st.integers(0, 4), st.integers(0, 4)), max_size=40)


@given(EVENTS)
def test_only_the_highest_token_is_obeyed_and_its_ticks_only_rise(events: list[tuple[str, int, int]]) -> None:
    guard = LeaderGuard()
    highest, done = -1, -1
    for event, token, tick in events:
        if event == "attach" and token < highest:
            with pytest.raises(StaleLeader):
                guard.attach(token)
        elif event == "attach":
            done = done if token == highest else -1
            highest = token
            guard.attach(token)
        else:
            expected = token == highest and tick > done
            assert guard.accepts(token, tick) is expected
            done = tick if expected else done
        assert guard.token == highest


def test_another_leader_with_the_same_token_is_refused_and_told_above_which_it_has_to_be() -> None:
    guard = LeaderGuard()
    guard.attach(7, "one")
    assert guard.accepts(7, 3)
    with pytest.raises(StaleLeader) as refused:
        guard.attach(7, "two")  # of a Redis that has lost its data and counts anew
    assert refused.value.newest_token == 7
    guard.attach(7, "one")
    assert not guard.accepts(7, 3), "its ticks go on counting"
    guard.attach(8, "two")
    assert guard.accepts(8, 1)
