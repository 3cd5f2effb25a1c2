"""Bounds that come from the arithmetic: rounding passes on any machine, and nothing that is wrong does."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from tests.rounding import A_LEVEL, COARSEST, UNIT, assert_rounded, assert_same_picture, rounding


@dataclass(frozen=True)
class Question:
    """A small network and what it is asked."""

    network: nn.Sequential
    given: Tensor

    def answer(self, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            answer: Tensor = self.network.to(dtype)(self.given.to(dtype))
        return answer


@pytest.fixture
def question() -> Question:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]
    network = nn.Sequential(convolutions[0], nn.GroupNorm(4, 32), nn.SiLU(), *convolutions[1:])
    return Question(network, torch.randn(2, 32, 8, 8))


def test_another_order_of_sums_passes(question: Question) -> None:
    exact, reference = question.answer(torch.float64), question.answer(torch.float32)
    channels_last = replace(question, given=question.given.contiguous(memory_format=torch.channels_last))
    assert_rounded(channels_last.answer(torch.float32), exact, reference)
    one_at_a_time = torch.cat([Question(question.network, row[None]).answer(torch.float32) for row in question.given])
    assert_rounded(one_at_a_time, exact, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not(question: Question, dtype: torch.dtype) -> None:
    exact, reference = question.answer(torch.float64), question.answer(torch.float32)
    for coarse in (question.answer(dtype), reference.to(dtype)):
        with pytest.raises(AssertionError, match="off by"):
            assert_rounded(coarse, exact, reference)
        with pytest.raises(AssertionError, match="would prove nothing"):
            rounding(exact, coarse)


def test_one_wrong_element_is_found(question: Question) -> None:
    exact, reference = question.answer(torch.float64), question.answer(torch.float32)
    for wrong in (1e-3, float("nan"), float("inf")):
        found = reference.clone()
        found[1, 2, 3, 4] += wrong
        with pytest.raises(AssertionError, match="off by"):
            assert_rounded(found, exact, reference)
    with pytest.raises(AssertionError):
        assert_rounded(reference[:1], exact, reference)


def test_without_a_reference_a_few_units_pass() -> None:
    exact = torch.tensor([8.0, 1.0], dtype=torch.float64)
    assert rounding(exact) == 16 * 8 * UNIT
    assert rounding(exact.repeat(4), exact.repeat(4)) == rounding(exact)
    assert_rounded(exact.float() + torch.tensor([1e-6, 5e-6]), exact)
    with pytest.raises(AssertionError, match="off by"):
        assert_rounded(exact.float() + torch.tensor([0, 1e-5]), exact)


def test_a_reference_of_a_few_numbers_is_refused() -> None:
    exact = torch.ones(7, dtype=torch.float64)
    with pytest.raises(AssertionError):
        rounding(exact, exact)


def test_pictures_of_values_that_rounding_moves_are_a_level_apart_at_most() -> None:
    exact = torch.tensor([99.5, 100.2, 255.0], dtype=torch.float64).repeat(4, 1, 1)
    reference = exact.float() + 1e-4
    up, down = (torch.tensor([whole, 100, 255], dtype=torch.uint8).repeat(4, 1, 1).numpy() for whole in (100, 99))
    for picture in (up, down):
        assert_same_picture(picture, exact, reference)
    assert int(up[0, 0, 0]) - int(down[0, 0, 0]) == A_LEVEL
    for wrong in (98, 101):
        picture = up.copy()
        picture[0, 0, 0] = wrong
        with pytest.raises(AssertionError, match="off by"):
            assert_same_picture(picture, exact, reference)
    neighbour = up.copy()
    neighbour[0, 0, 1] = 101
    with pytest.raises(AssertionError, match=r"off by 0.8"):
        assert_same_picture(neighbour, exact, reference)
    assert COARSEST * 255 < 0.5, "so that two halves and two bounds are less than two levels"
