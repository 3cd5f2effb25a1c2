import pytest

from synerdiff.errors import InvalidRequest
from synerdiff.skip_cfg import SkipPredictor


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
