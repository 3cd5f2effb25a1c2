import pytest
from hypothesis import given
from hypothesis import strategies as st

from synerdiff.errors import InvalidRequest
from synerdiff.skip_cfg import SkipPredictor, spread


@pytest.mark.parametrize("text", ["drop", "reuse", "extrapolate:0.5", "extrapolate:2"])
def test_a_predictor_reads_as_it_is_written(text: str) -> None:
    assert str(SkipPredictor.parse(text)) == text


@pytest.mark.parametrize("text", ["", "guess", "reuse:1", "extrapolate", "extrapolate:0", "extrapolate:3", "drop:"])
def test_what_is_no_predictor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"skip_predictor.*{text!r} is not"):
        SkipPredictor.parse(text)


def test_weights() -> None:
    extrapolate = SkipPredictor.parse("extrapolate:0.5")
    assert SkipPredictor.parse("drop").weights((), 3) == ()
    assert SkipPredictor.parse("reuse").weights((2,), 4) == (1,)
    assert extrapolate.weights((2,), 3) == (1,)
    assert extrapolate.weights((2, 0), 3) == (1, 0)
    assert extrapolate.weights((4, 2), 5) == (1.25, -0.25)
    assert extrapolate.weights((4, 3), 6) == (2, -1)


def runs(calls: tuple[int, ...], num_calls: int) -> list[int]:
    told = "".join("s" if call in calls else " " for call in range(num_calls))
    return [len(run) for run in told.split()]


@given(
    num_calls=st.integers(1, 60),
    share=st.floats(0, 1),
    longest_run=st.integers(1, 6),
    head=st.integers(0, 5),
    tail=st.integers(0, 5),
)
def test_spread_skips_as_many_as_the_bounds_allow(
    num_calls: int, share: float, longest_run: int, head: int, tail: int
) -> None:
    calls = spread(num_calls, share, longest_run, head, tail)
    free = [call for call in range(num_calls) if max(head, 1) <= call < num_calls - tail]
    assert set(calls) <= set(free)
    assert len(set(calls)) == len(calls) <= share * num_calls + 1e-6
    assert all(run <= longest_run for run in runs(calls, num_calls))
    packed = sum(place % (longest_run + 1) != longest_run for place in range(len(free)))
    assert len(calls) == min(int(share * num_calls + 1e-9), packed)


def test_spread_is_even() -> None:
    assert spread(20, 0.5, 1, 1, 2) == (1, 3, 5, 7, 9, 11, 13, 15, 17)
    assert spread(20, 0.1, 1, 2, 1) == (5, 14)
    assert runs(spread(20, 0.65, 4, 1, 2), 20) == [2, 3, 3, 3, 2]
    assert runs(spread(20, 0.65, 2, 1, 2), 20) == [2] * 6
